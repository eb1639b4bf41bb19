// Backward stage 3: everything that reads x, and the gradient of x.
#pragma once

#include "mixed_op/cpu/backward_second.h"
#include "mixed_op/cpu/pool_backward.h"

namespace metadnas::METADNAS_ISA {

template <class T>
struct InputScratch {
  UnitScratch<T> unit;
  PaddedImage<T> grad_in;  // gradient of relu(x)
  T* pools;
  T* pool_row;
  PoolEdge<T>* pool_edges;

  explicit InputScratch(const Context<T>& context)
      : unit(context, context.layout.input_image()), grad_in(context.layout.input_image()) {}

  void take(const Context<T>& context) {
    const Geometry& g = context.geometry;
    const int64_t pool_size = context.plan.pools() ? PoolScratch<T>::size(g) : 0;
    const int64_t row_size = int64_t{g.width} * kLanes<T>;
    const int64_t edges = static_cast<int64_t>(context.plan.edges.size());
    Arena& arena = worker_arena();
    arena.reset(unit.bytes() +
                static_cast<size_t>(grad_in.size() + pool_size + row_size) * sizeof(T) +
                static_cast<size_t>(edges) * sizeof(PoolEdge<T>) + 4 * 64);
    unit.take(arena);
    grad_in.data = arena.take<T>(grad_in.size());
    pools = arena.take<T>(pool_size);
    pool_row = arena.take<T>(row_size);
    pool_edges = arena.take<PoolEdge<T>>(edges);
  }
};

// The edges' parts in the gradients of both pools, for one channel block of an image.
template <class T>
std::pair<PoolGradient<T>, PoolGradient<T>> pool_gradients(const MixedOpBackward<T>& args,
                                                           const Context<T>& context,
                                                           const BackwardBuffers<T>& buffers,
                                                           const Task& task, int64_t image,
                                                           int block, PoolEdge<T>* edges) {
  const int at = block * kLanes<T>;
  std::pair<PoolGradient<T>, PoolGradient<T>> total;
  auto add = [&](const Pool& pool, PoolGradient<T>& gradient) {
    if (!pool.present()) return Vec<T>{};
    const NormGradient<T> norm = buffers.gradient(context, task.client, pool.norm);
    gradient.present = true;
    gradient.mean = load(context.norm(task.client, pool.norm).mean + at);
    gradient.slope += load(norm.slope + at);
    gradient.shift += load(norm.shift + at);
    return load(norm.scale + at);
  };
  for (size_t e = 0; e < context.plan.edges.size(); ++e) {
    const Edge& edge = context.plan.edges[e];
    const Images<const T>& grad = args.grad_out[e];
    const Vec<T> max_scale = add(edge.max_pool, total.first);
    const Vec<T> mean_scale = add(edge.avg_pool, total.second);
    edges[e] = {context.image(grad, task.client, image) + at, grad.pitch, max_scale, mean_scale};
  }
  return total;
}

// grad_x = base + relu'(x) * grad_in + sum of weight * grad_out (identities) + pools.
template <class T>
void write_input_grad(const MixedOpBackward<T>& args, const Context<T>& context,
                      const BackwardBuffers<T>& buffers, const Task& task, int64_t image,
                      const InputScratch<T>& scratch) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const Plan& plan = context.plan;
  const int edges = static_cast<int>(plan.edges.size());
  const bool units = plan.first_half_units() > 0;
  const PoolScratch<T> pool(g, scratch.pools);
  if (plan.pools()) pool.clear_border(g);
  for (int block = 0; block < context.layout.blocks; ++block) {
    const int live = context.layout.live(block);
    const T* x = context.x_image(task.client, image) + block * L;
    const auto [max_grad, mean_grad] =
        pool_gradients(args, context, buffers, task, image, block, scratch.pool_edges);
    if (plan.pools()) {
      pool_gather(g, x, args.x.pitch, live, max_grad, mean_grad, scratch.pool_edges, edges, pool);
    }
    for (int h = 0; h < g.height; ++h) {
      if (plan.pools()) {
        g.stride == 1 ? pool_input_grad_row<1>(g, pool, max_grad.present, mean_grad.present, h,
                                               scratch.pool_row)
                      : pool_input_grad_row<2>(g, pool, max_grad.present, mean_grad.present, h,
                                               scratch.pool_row);
      }
      const ptrdiff_t pixel = static_cast<ptrdiff_t>(h) * g.width;
      const T* from = scratch.grad_in.at(block, h, 0);
      T* to =
          context.image(args.grad_x, task.client, image) + pixel * args.grad_x.pitch + block * L;
      const T* base = args.base.present() ? context.image(args.base, task.client, image) +
                                                pixel * args.base.pitch + block * L
                                          : nullptr;
      auto write = [&](int lanes) METADNAS_INLINE {
        for (int w = 0; w < g.width; ++w) {
          Vec<T> total = plan.pools() ? load(scratch.pool_row + w * L) : Vec<T>{};
          if (units) {
            total +=
                relu_grad(load_first(x + (pixel + w) * args.x.pitch, lanes), load(from + w * L));
          }
          if (base != nullptr) total += load_first(base + w * args.base.pitch, lanes);
          for (int e = 0; e < edges; ++e) {
            if (plan.edges[e].identity == kAbsent) continue;
            const PoolEdge<T>& edge = scratch.pool_edges[e];
            total += context.weight(task.client, plan.edges[e].identity) *
                     load_first(edge.grad + (pixel + w) * edge.pitch, lanes);
          }
          store_first(to + w * args.grad_x.pitch, total, lanes);
        }
      };
      live == L ? write(L) : write(live);
    }
  }
}

// One unit that reads x: its weight gradients, and its part of grad_in.
template <class T>
void first_half_image(const MixedOpBackward<T>& args, const Context<T>& context,
                      const BackwardBuffers<T>& buffers, const Task& task, int64_t image, int index,
                      T* weight_grad, const InputScratch<T>& scratch) {
  constexpr int L = kLanes<T>;
  const Unit& unit = context.plan.units[index];
  const Images<const T>& grads = args.grad_out[unit.edge];
  const T* grad = context.image(grads, task.client, image);
  ptrdiff_t pitch = grads.pitch;
  for (int v = context.plan.first_half_units(); v < context.units(); ++v) {
    if (context.plan.units[v].source == index) {
      grad = buffers.middle_image(context, v, task.client, image);
      pitch = context.geometry.channels;
    }
  }
  const PackedUnit<T> packed = context.packed(task.client, index);
  const bool need_input = args.grad_x.present();
  unit_backward(
      context, unit, packed,
      UnitGradient<T>{buffers.gradient(context, task.client, unit.norm),
                      context.norm(task.client, unit.norm).mean, grad, pitch,
                      context.z_image(index, task.client, image), weight_grad, need_input},
      scratch.unit, &scratch.grad_in);
  if (unit.factorized() || !need_input) return;
  auto add = [&]<int TW>(int block, int h, int w, Vec<T>(&acc)[TW]) METADNAS_INLINE {
    // Tiles that run over the right edge write to the slack behind it.
    T* to = scratch.grad_in.at(block, h, w);
    unroll<TW>([&]<int t>() METADNAS_INLINE { store(to + t * L, load(to + t * L) + acc[t]); });
  };
  unit.stride == 2
      ? unit_input_grad<true>(unit, packed, context.layout.in_tile, scratch.unit, add)
      : unit_input_grad<false>(unit, packed, context.layout.in_tile, scratch.unit, add);
}

template <class T>
void backward_first_halves(const MixedOpBackward<T>& args, const Context<T>& context,
                           const BackwardBuffers<T>& buffers, const Task& task, int64_t index) {
  InputScratch<T> scratch(context);
  scratch.take(context);
  const int units = context.plan.first_half_units();
  for (int64_t image = task.begin; image < task.end; ++image) {
    if (units > 0) {
      pad_relu(context.layout, context.x_image(task.client, image), args.x.pitch, scratch.unit.in);
      scratch.grad_in.clear();
    }
    for (int u = 0; u < units; ++u) {
      first_half_image(args, context, buffers, task, image, u,
                       buffers.weight_grad(context, index, u), scratch);
    }
    if (args.grad_x.present()) write_input_grad(args, context, buffers, task, image, scratch);
  }
}

}  // namespace metadnas::METADNAS_ISA
