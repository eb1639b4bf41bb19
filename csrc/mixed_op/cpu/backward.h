// The backward pass: sums, second halves, first halves and pools, then the weight gradients of all
// tasks added up in a fixed order.
#pragma once

#include "mixed_op/cpu/backward_first.h"
#include "mixed_op/cpu/backward_second.h"

namespace metadnas::METADNAS_ISA {

// A client's rows of gradients, and room for two rows of channels.
template <class T>
struct ClientGradients {
  T* weights;
  T* params;  // null: not wanted
  double* grad_sum;
  double* product;

  ClientGradients(const MixedOpBackward<T>& args, int64_t client, double* scratch)
      : weights(args.grad_weights + client * args.weights_stride),
        params(args.grad_params == nullptr ? nullptr
                                           : args.grad_params + client * args.grad_params_stride),
        grad_sum(scratch + client * 2 * args.geometry.channels),
        product(grad_sum + args.geometry.channels) {}
};

// A batch norm's coefficients, and the gradients of gamma and beta, from the sums in `to`. weight:
// the mixing weight behind it.
template <class T>
void close_norm(const Context<T>& context, const BackwardBuffers<T>& buffers, int64_t client,
                int index, double weight, const ClientGradients<T>& to) {
  const int channels = context.geometry.channels;
  const int64_t pixels = context.args.count(client) * context.geometry.out_pixels();
  const NormVectors<T> norm = context.norm(client, index);
  const NormGradientSums sums{NormValues::kCentred, weight, to.grad_sum, to.product};
  buffers.gradient(context, client, index)
      .fill(norm, sums, channels, context.args.training ? pixels : 0);
  const int64_t affine = context.plan.norms[index].affine;
  if (affine != kAbsent && to.params != nullptr) {
    sums.write_affine(norm, channels, to.params + affine);
  }
}

// A candidate's batch norm: its coefficients, gamma, beta; returns the gradient of its weight.
template <class T>
double close_candidate(const Context<T>& context, const BackwardBuffers<T>& buffers,
                       const GradientSums<T>& sums, int64_t client, int64_t weight_index, int index,
                       const ClientGradients<T>& to) {
  const NormVectors<T> norm = context.norm(client, index);
  sums.total(client, index, to.product);
  close_norm(context, buffers, client, index,
             static_cast<double>(context.weight(client, weight_index)), to);
  double grad_weight = 0;
  for (int c = 0; c < context.geometry.channels; ++c) {
    grad_weight += static_cast<double>(norm.gamma[c] * norm.inverse[c]) * to.product[c] +
                   static_cast<double>(norm.beta[c]) * to.grad_sum[c];
  }
  return grad_weight;
}

// After stage 1: every candidate's coefficients and the gradients of weights, gamma and beta.
template <class T>
void close_candidates(const Context<T>& context, const BackwardBuffers<T>& buffers,
                      const GradientSums<T>& sums, int64_t client, const ClientGradients<T>& to) {
  for (int e = 0; e < static_cast<int>(context.plan.edges.size()); ++e) {
    const Edge& edge = context.plan.edges[e];
    for (const int64_t weight : edge.all_weights) to.weights[weight] = T{0};
    sums.total(client, sums.grad_row(e), to.grad_sum);
    auto close = [&](int64_t weight, int norm) {
      to.weights[weight] =
          static_cast<T>(close_candidate(context, buffers, sums, client, weight, norm, to));
    };
    if (edge.max_pool.present()) close(edge.max_pool.weight, edge.max_pool.norm);
    if (edge.avg_pool.present()) close(edge.avg_pool.weight, edge.avg_pool.norm);
    for (const Unit& unit : context.plan.units) {
      if (unit.edge == e && !unit.intermediate()) close(unit.weight, unit.norm);
    }
    if (edge.identity == kAbsent) continue;
    sums.total(client, sums.identity_row(e), to.product);
    double total = 0;
    for (int c = 0; c < context.geometry.channels; ++c) total += to.product[c];
    to.weights[edge.identity] = static_cast<T>(total);
  }
}

// After stage 2: the same for the batch norms between the halves of separable convolutions.
template <class T>
void close_middles(const Context<T>& context, const BackwardBuffers<T>& buffers,
                   const GradientSums<T>& sums, int64_t client, const ClientGradients<T>& to) {
  const Plan& plan = context.plan;
  for (int u = plan.first_half_units(); u < context.units(); ++u) {
    const int index = plan.units[plan.units[u].source].norm;
    sums.total(client, plan.units[u].norm, to.grad_sum);
    sums.total(client, index, to.product);
    close_norm(context, buffers, client, index, 1.0, to);
  }
}

// Adds the tasks' weight gradients of one unit of one client, in task order, into packed layout.
template <class T>
void reduce_weight_grads(const MixedOpBackward<T>& args, const Context<T>& context,
                         const BackwardBuffers<T>& buffers, int64_t client, int index) {
  constexpr int L = kLanes<T>;
  const Unit& unit = context.plan.units[index];
  const int channels = context.geometry.channels;
  const int64_t size = context.taps_size(unit) + context.matrix_size(unit);
  T* total = buffers.weight_grad(context, client * context.tasks_per_client, index);
  for (int64_t t = 1; t < context.tasks_per_client; ++t) {
    const T* more = total + t * context.weight_grad_size();
    for (int64_t i = 0; i < size; ++i) total[i] += more[i];
  }
  T* to = args.grad_params + client * args.grad_params_stride;
  const int taps = unit.kernel * unit.kernel;
  for (int c = 0; c < channels && !unit.factorized(); ++c) {
    for (int k = 0; k < taps; ++k) {
      to[unit.depthwise + c * taps + k] = total[(c / L * taps + k) * L + c % L];
    }
  }
  const T* matrix = total + context.taps_size(unit);
  const int row = context.in_row(unit);
  for (int out = 0; out < channels; ++out) {
    const int grid = unit.factorized() && out >= channels / 2 ? context.layout.padded_channels : 0;
    for (int in = 0; in < channels; ++in) {
      to[unit.pointwise + static_cast<int64_t>(out) * channels + in] =
          matrix[static_cast<int64_t>(out) * row + grid + in];
    }
  }
}

// Everything behind the sums: skipped when only the gradient of the mixing weights is wanted.
template <class T>
void backward_convolutions(const MixedOpBackward<T>& args, const Context<T>& context,
                           const BackwardBuffers<T>& buffers, const GradientSums<T>& sums,
                           double* scratch) {
  if (context.plan.first_half_units() < context.units()) {
    parallel_for_each(context.tasks(), [&](int64_t i) {
      backward_second_halves(args, context, buffers, sums, context.task(i), i);
    });
    parallel_for_each(context.geometry.clients, [&](int64_t client) {
      close_middles(context, buffers, sums, client, ClientGradients<T>(args, client, scratch));
    });
  }
  parallel_for_each(context.tasks(), [&](int64_t i) {
    backward_first_halves(args, context, buffers, context.task(i), i);
  });
  if (args.grad_params == nullptr) return;
  parallel_for_each(context.geometry.clients * context.units(), [&](int64_t i) {
    reduce_weight_grads(args, context, buffers, i / context.units(),
                        static_cast<int>(i % context.units()));
  });
}

template <class T>
void mixed_op_backward(const MixedOpBackward<T>& args) {
  Context<T> context(args);
  const Geometry& g = context.geometry;
  const bool need_params = args.grad_params != nullptr;
  const int64_t gradients =
      g.clients * context.norms() * NormGradient<T>::size(context.layout.padded_channels);
  const int64_t middles = (context.units() - context.plan.first_half_units()) * g.clients *
                          g.images * context.out_size();
  const int64_t weight_grads = need_params ? context.tasks() * context.weight_grad_size() : 0;
  const int64_t sums_size = GradientSums<T>::size(context);
  Arena& arena = call_arena();
  arena.reset(static_cast<size_t>(context.packed_size() + context.norm_vectors_size() + gradients +
                                  middles + weight_grads) *
                  sizeof(T) +
              static_cast<size_t>(sums_size + g.clients * 2 * g.channels) * sizeof(double) +
              7 * 64);
  context.pack(arena.take<T>(context.packed_size()));
  context.place_norms(arena.take<T>(context.norm_vectors_size()));
  BackwardBuffers<T> buffers{arena.take<T>(gradients), arena.take<T>(middles),
                             arena.take<T>(weight_grads)};
  if (!need_params) buffers.weight_grads = nullptr;
  const GradientSums<T> sums{context, arena.take<double>(sums_size)};
  double* scratch = arena.take<double>(g.clients * 2 * g.channels);

  parallel_for_each(g.clients * context.norms(), [&](int64_t i) {
    context.fill_norm(i / context.norms(), static_cast<int>(i % context.norms()));
  });
  parallel_for_each(context.tasks(), [&](int64_t i) {
    if (need_params) {
      __builtin_memset(buffers.weight_grads + i * context.weight_grad_size(), 0,
                       static_cast<size_t>(context.weight_grad_size()) * sizeof(T));
    }
    backward_sums(args, context, sums, context.task(i));
  });
  parallel_for_each(g.clients, [&](int64_t client) {
    close_candidates(context, buffers, sums, client, ClientGradients<T>(args, client, scratch));
  });
  if (need_params || args.grad_x.present()) {
    backward_convolutions(args, context, buffers, sums, scratch);
  }
}

}  // namespace metadnas::METADNAS_ISA
