// Backward stages 2 and 3: the second halves of the separable convolutions, then everything that
// reads x.
#pragma once

#include "mixed_op/cpu/backward_sums.h"
#include "mixed_op/cpu/backward_unit.h"

namespace metadnas::METADNAS_ISA {

// Buffers of a backward call that several stages share.
template <class T>
struct BackwardBuffers {
  T* norm_gradients;  // (client, norm) NormGradient
  T* middle;          // (second-half unit, client, image) gradient of the first half's batch norm
  T* weight_grads;    // (task, Context::weight_grad_size)

  NormGradient<T> gradient(const Context<T>& context, int64_t client, int slot) const {
    const int padded = context.layout.padded_channels;
    const int64_t index = client * context.norms() + slot;
    return {padded, norm_gradients + index * NormGradient<T>::size(padded)};
  }
  T* middle_image(const Context<T>& context, int unit, int64_t client, int64_t image) const {
    const Geometry& g = context.geometry;
    const int64_t index = unit - context.plan.first_half_units();
    return middle + ((index * g.clients + client) * g.images + image) * g.out_image();
  }
  T* weight_grad(const Context<T>& context, int64_t task, int unit) const {
    return weight_grads + task * context.weight_grad_size() + context.weight_grad_offset(unit);
  }
};

template <class T>
void backward_second_halves(const Context<T>& context, const BackwardBuffers<T>& buffers,
                            const GradientSums<T>& sums, const T* grad_out, const Task& task,
                            int64_t index) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const Plan& plan = context.plan;
  UnitScratch<T> scratch(context, context.layout.output_image(), context.layout.out_strip);
  Arena& arena = worker_arena();
  arena.reset(scratch.bytes() +
              static_cast<size_t>(2 * context.layout.padded_channels) * sizeof(T) + 64);
  scratch.take(arena);
  T* totals = arena.take<T>(int64_t{2} * context.layout.padded_channels);
  for (int u = plan.first_half_units(); u < context.units(); ++u) {
    const Unit& unit = plan.units[u];
    const Unit& first = plan.units[unit.source];
    const NormVectors<T> first_norm = context.norm(task.client, first.norm);
    const PackedUnit<T> packed = context.packed(task.client, u);
    for (int64_t image = task.begin; image < task.end; ++image) {
      const T* first_z = context.args.z_image(unit.source, task.client, image);
      pad_normalised_relu(context.layout, first_z, first_norm.mean, first_norm.scale,
                          first_norm.beta, scratch.in);
      unit_backward(context, unit, packed, buffers.gradient(context, task.client, unit.norm),
                    context.norm(task.client, unit.norm).mean,
                    grad_out + (task.client * g.images + image) * g.out_image(),
                    context.args.z_image(u, task.client, image), scratch,
                    static_cast<const PaddedImage<T>*>(nullptr),
                    buffers.weight_grad(context, index, u));
      T* middle = buffers.middle_image(context, u, task.client, image);
      __builtin_memset(totals, 0, sizeof(T) * 2 * context.layout.padded_channels);
      auto use = [&](int block, int row0, int rows, const T* values) METADNAS_INLINE {
        const int live = context.layout.live(block);
        const Vec<T> mean = load(first_norm.mean + block * L);
        Vec<T> sum{}, product{};
        for (int h = 0; h < rows; ++h) {
          const T* rectified = scratch.in.at(block, row0 + h, 0);
          const ptrdiff_t start =
              static_cast<ptrdiff_t>(row0 + h) * g.out_width * g.channels + block * L;
          for (int w = 0; w < g.out_width; ++w) {
            const ptrdiff_t at = start + static_cast<ptrdiff_t>(w) * g.channels;
            const Vec<T> grad =
                relu_grad(load(rectified + w * L), load(values + (h * g.out_width + w) * L));
            store_first(middle + at, grad, live);
            sum += grad;
            product += grad * (load_first(first_z + at, live) - mean);
          }
        }
        T* s = totals + block * L;
        T* p = s + context.layout.padded_channels;
        store(s, load(s) + sum);
        store(p, load(p) + product);
      };
      unit_input_grad(context, unit, packed, context.layout.out_strip, context.layout.out_tile,
                      scratch, use);
      // A middle norm uses the row of its own slot for the products and the slot of the candidate's
      // norm, no longer needed, for the plain sums.
      for (int block = 0; block < context.layout.blocks; ++block) {
        const int live = context.layout.live(block);
        const T* s = totals + block * L;
        write_lanes<T>(load(s), live, sums.at(task.client, image, unit.norm) + block * L);
        write_lanes<T>(load(s + context.layout.padded_channels), live,
                       sums.at(task.client, image, first.norm) + block * L);
      }
    }
  }
}

// grad_x = relu'(x) * grad_in + weight * grad_out (identity) + pools.
template <class T>
void write_input_grad(const Context<T>& context, const BackwardBuffers<T>& buffers,
                      const Task& task, const T* x, const T* grad_out,
                      const PaddedImage<T>& grad_in, T* pool_memory, T* grad_x) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const Plan& plan = context.plan;
  const bool pools = plan.max_pool.present() || plan.avg_pool.present();
  const PoolBackward<T> pool(g, pool_memory);
  for (int block = 0; block < context.layout.blocks; ++block) {
    const int at = block * L;
    const int live = context.layout.live(block);
    if (pools) {
      auto gradient = [&](const Pool& p) {
        if (!p.present()) return PoolGradient<T>{};
        const NormGradient<T> n = buffers.gradient(context, task.client, p.norm);
        return PoolGradient<T>{true, load(n.scale + at), load(n.slope + at),
                               load(context.norm(task.client, p.norm).mean + at),
                               load(n.shift + at)};
      };
      pool_backward_gather(g, x + at, grad_out + at, live, gradient(plan.max_pool),
                           gradient(plan.avg_pool), pool);
    }
    const Vec<T> identity =
        splat(plan.identity == kAbsent ? T{0} : context.weight(task.client, plan.identity));
    for (int h = 0; h < g.height; ++h) {
      const T* from = grad_in.at(block, h, 0);
      for (int w = 0; w < g.width; ++w) {
        const ptrdiff_t pixel = (static_cast<ptrdiff_t>(h) * g.width + w) * g.channels + at;
        Vec<T> total = relu_grad(load_first(x + pixel, live), load(from + w * L));
        if (plan.identity != kAbsent) total += identity * load_first(grad_out + pixel, live);
        if (pools) {
          total +=
              pool_backward_at(g, pool, plan.max_pool.present(), plan.avg_pool.present(), h, w);
        }
        store_first(grad_x + pixel, total, live);
      }
    }
  }
}

template <class T>
void backward_first_halves(const Context<T>& context, const BackwardBuffers<T>& buffers,
                           const T* grad_out, const Task& task, int64_t index, T* grad_x) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const Plan& plan = context.plan;
  UnitScratch<T> scratch(context, context.layout.input_image(), context.layout.in_strip);
  PaddedImage<T> grad_in = context.layout.input_image();
  const int64_t pool_size = PoolBackward<T>::size(g);
  Arena& arena = worker_arena();
  arena.reset(scratch.bytes() + static_cast<size_t>(grad_in.size() + pool_size) * sizeof(T) +
              2 * 64);
  scratch.take(arena);
  grad_in.data = arena.take<T>(grad_in.size());
  T* pool_memory = arena.take<T>(pool_size);
  for (int64_t image = task.begin; image < task.end; ++image) {
    const T* x = context.x_image(task.client, image);
    const T* grad = grad_out + (task.client * g.images + image) * g.out_image();
    grad_in.clear();
    if (plan.first_half_units() > 0) pad_relu(context.layout, x, scratch.in);
    for (int u = 0; u < plan.first_half_units(); ++u) {
      const Unit& unit = plan.units[u];
      const T* source = grad;
      if (unit.candidate == kAbsent) {
        for (int v = plan.first_half_units(); v < context.units(); ++v) {
          if (plan.units[v].source == u) {
            source = buffers.middle_image(context, v, task.client, image);
          }
        }
      }
      const PackedUnit<T> packed = context.packed(task.client, u);
      unit_backward(context, unit, packed, buffers.gradient(context, task.client, unit.norm),
                    context.norm(task.client, unit.norm).mean, source,
                    context.args.z_image(u, task.client, image), scratch, &grad_in,
                    buffers.weight_grad(context, index, u));
      if (unit.factorized()) continue;
      auto add = [&](int block, int row0, int rows, const T* values) METADNAS_INLINE {
        for (int h = 0; h < rows; ++h) {
          T* to = grad_in.at(block, row0 + h, 0);
          for (int w = 0; w < g.width; ++w) {
            store(to + w * L, load(to + w * L) + load(values + (h * g.width + w) * L));
          }
        }
      };
      unit_input_grad(context, unit, packed, context.layout.in_strip, context.layout.in_tile,
                      scratch, add);
    }
    write_input_grad(context, buffers, task, x, grad, grad_in, pool_memory,
                     grad_x + (task.client * g.images + image) * g.in_image());
  }
}

}  // namespace metadnas::METADNAS_ISA
