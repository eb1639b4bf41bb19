// The backward pass: sums, second halves, first halves and pools, then the weight gradients of all
// tasks added up in a fixed order.
#pragma once

#include "mixed_op/cpu/backward_halves.h"

namespace metadnas::METADNAS_ISA {

// Gradients of a candidate's batch norm: its coefficients, gamma, beta; returns that of its weight.
template <class T>
double candidate_norm(const Context<T>& context, const BackwardBuffers<T>& buffers,
                      const GradientSums<T>& sums, int64_t client, int candidate, int slot,
                      const double* grad_sum, T* grad_params, double* product) {
  const Geometry& g = context.geometry;
  const NormVectors<T> norm = context.norm(client, slot);
  const double weight = static_cast<double>(context.weight(client, candidate));
  sums.total(client, slot, product);
  buffers.gradient(context, client, slot)
      .fill(norm, weight, grad_sum, product,
            static_cast<double>(context.args.count(client) * g.out_pixels()),
            !context.args.training, g.channels, context.layout.padded_channels);
  double grad_weight = 0;
  for (int c = 0; c < g.channels; ++c) {
    grad_weight += static_cast<double>(norm.scale[c]) * product[c] +
                   static_cast<double>(norm.beta[c]) * grad_sum[c];
  }
  const Norm& affine = context.plan.norms[slot];
  if (affine.gamma != kAbsent) {
    for (int c = 0; c < g.channels; ++c) {
      const double inverse = static_cast<double>(norm.inverse[c]);
      grad_params[affine.gamma + c] = static_cast<T>(weight * inverse * product[c]);
      grad_params[affine.beta + c] = static_cast<T>(weight * grad_sum[c]);
    }
  }
  return grad_weight;
}

// After stage 1: every candidate's coefficients and the gradients of weights, gamma and beta.
template <class T>
void close_candidates(const MixedOpBackward<T>& args, const Context<T>& context,
                      const BackwardBuffers<T>& buffers, const GradientSums<T>& sums,
                      int64_t client, double* scratch) {
  const Plan& plan = context.plan;
  const int channels = context.geometry.channels;
  double* grad_sum = scratch;
  double* product = scratch + channels;
  T* grad_params = args.grad_params + client * plan.parameters;
  T* grad_weights = args.grad_weights + client * plan.candidates;
  for (int i = 0; i < plan.candidates; ++i) grad_weights[i] = T{0};
  sums.total(client, context.norms(), grad_sum);
  auto close = [&](int candidate, int slot) {
    grad_weights[candidate] = static_cast<T>(candidate_norm(
        context, buffers, sums, client, candidate, slot, grad_sum, grad_params, product));
  };
  if (plan.max_pool.present()) close(plan.max_pool.candidate, plan.max_pool.norm);
  if (plan.avg_pool.present()) close(plan.avg_pool.candidate, plan.avg_pool.norm);
  for (const Unit& unit : plan.units) {
    if (unit.candidate != kAbsent) close(unit.candidate, unit.norm);
  }
  if (plan.identity != kAbsent) {
    sums.total(client, context.norms() + 1, product);
    double total = 0;
    for (int c = 0; c < channels; ++c) total += product[c];
    grad_weights[plan.identity] = static_cast<T>(total);
  }
}

// After stage 2: the same for the batch norms between the halves of separable convolutions.
template <class T>
void close_middles(const MixedOpBackward<T>& args, const Context<T>& context,
                   const BackwardBuffers<T>& buffers, const GradientSums<T>& sums, int64_t client,
                   double* scratch) {
  const Plan& plan = context.plan;
  const Geometry& g = context.geometry;
  double* grad_sum = scratch;
  double* product = scratch + g.channels;
  T* grad_params = args.grad_params + client * plan.parameters;
  for (int u = plan.first_half_units(); u < context.units(); ++u) {
    const int slot = plan.units[plan.units[u].source].norm;
    sums.total(client, plan.units[u].norm, grad_sum);
    sums.total(client, slot, product);
    const NormVectors<T> norm = context.norm(client, slot);
    buffers.gradient(context, client, slot)
        .fill(norm, 1.0, grad_sum, product,
              static_cast<double>(args.count(client) * g.out_pixels()), !args.training, g.channels,
              context.layout.padded_channels);
    const Norm& affine = plan.norms[slot];
    if (affine.gamma == kAbsent) continue;
    for (int c = 0; c < g.channels; ++c) {
      grad_params[affine.gamma + c] =
          static_cast<T>(static_cast<double>(norm.inverse[c]) * product[c]);
      grad_params[affine.beta + c] = static_cast<T>(grad_sum[c]);
    }
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
  T* total = buffers.weight_grads + client * context.tasks_per_client * context.weight_grad_size() +
             context.weight_grad_offset(index);
  for (int64_t t = 1; t < context.tasks_per_client; ++t) {
    const T* more = total + t * context.weight_grad_size();
    for (int64_t i = 0; i < size; ++i) total[i] += more[i];
  }
  T* to = args.grad_params + client * context.plan.parameters;
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

template <class T>
void mixed_op_backward(const MixedOpBackward<T>& args) {
  Context<T> context(args);
  const Geometry& g = context.geometry;
  const int padded = context.layout.padded_channels;
  const int64_t gradients = g.clients * context.norms() * NormGradient<T>::size(padded);
  const int64_t middles =
      (context.units() - context.plan.first_half_units()) * g.clients * g.images * g.out_image();
  const int64_t weight_grads = context.tasks() * context.weight_grad_size();
  const int64_t sums_size = GradientSums<T>::size(context);
  Arena& arena = call_arena();
  arena.reset(static_cast<size_t>(context.packed_size() + context.norm_vectors_size() + gradients +
                                  middles + weight_grads) *
                  sizeof(T) +
              static_cast<size_t>(sums_size + g.clients * 2 * g.channels) * sizeof(double) +
              7 * 64);
  context.pack(arena.take<T>(context.packed_size()));
  context.place_norms(arena.take<T>(context.norm_vectors_size()));
  const BackwardBuffers<T> buffers{arena.take<T>(gradients), arena.take<T>(middles),
                                   arena.take<T>(weight_grads)};
  const GradientSums<T> sums{context, arena.take<double>(sums_size)};
  double* client_scratch = arena.take<double>(g.clients * 2 * g.channels);

  parallel_for_each(g.clients * context.norms(), [&](int64_t i) {
    context.fill_norm(i / context.norms(), static_cast<int>(i % context.norms()));
  });
  parallel_for_each(context.tasks(), [&](int64_t i) {
    __builtin_memset(buffers.weight_grads + i * context.weight_grad_size(), 0,
                     static_cast<size_t>(context.weight_grad_size()) * sizeof(T));
    backward_sums(context, sums, args.grad_out, context.task(i));
  });
  parallel_for_each(g.clients, [&](int64_t client) {
    close_candidates(args, context, buffers, sums, client,
                     client_scratch + client * 2 * g.channels);
  });
  if (middles > 0) {
    parallel_for_each(context.tasks(), [&](int64_t i) {
      backward_second_halves(context, buffers, sums, args.grad_out, context.task(i), i);
    });
    parallel_for_each(g.clients, [&](int64_t client) {
      close_middles(args, context, buffers, sums, client, client_scratch + client * 2 * g.channels);
    });
  }
  parallel_for_each(context.tasks(), [&](int64_t i) {
    backward_first_halves(context, buffers, args.grad_out, context.task(i), i, args.grad_x);
  });
  parallel_for_each(g.clients * context.units(), [&](int64_t i) {
    reduce_weight_grads(args, context, buffers, i / context.units(),
                        static_cast<int>(i % context.units()));
  });
}

}  // namespace metadnas::METADNAS_ISA
