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

// One row of one channel block of an image, what its input gradient is made of; null: nothing.
template <class T>
struct InputGradRow {
  const T* pools;    // [column][lane]
  const T* grad_in;  // [column][lane], gradient of relu(x)
  const T* x;
  const T* base;
  ptrdiff_t pixel;  // the first one, in the image
  T* to;
};

// to = pools + relu'(x) * grad_in + base + sum of weight * grad_out (identities).
template <class T>
METADNAS_INLINE inline void write_input_grad_row(const MixedOpBackward<T>& args,
                                                 const Context<T>& context, int64_t client,
                                                 const InputGradRow<T>& row,
                                                 const PoolEdge<T>* edges, int lanes) {
  constexpr int L = kLanes<T>;
  const int count = static_cast<int>(context.plan.edges.size());
  for (int w = 0; w < context.geometry.width; ++w) {
    Vec<T> total = row.pools != nullptr ? load(row.pools + w * L) : Vec<T>{};
    if (row.grad_in != nullptr) {
      total += relu_grad(load_first(row.x + w * args.x.pitch, lanes), load(row.grad_in + w * L));
    }
    if (row.base != nullptr) total += load_first(row.base + w * args.base.pitch, lanes);
    for (int e = 0; e < count; ++e) {
      const int64_t identity = context.plan.edges[e].identity;
      if (identity == kAbsent) continue;
      total += context.weight(client, identity) *
               load_first(edges[e].grad + (row.pixel + w) * edges[e].pitch, lanes);
    }
    store_first(row.to + w * args.grad_x.pitch, total, lanes);
  }
}

template <class T>
void write_input_grad_block(const MixedOpBackward<T>& args, const Context<T>& context,
                            const BackwardBuffers<T>& buffers, const Task& task, int64_t image,
                            int block, const InputScratch<T>& scratch) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const int live = context.layout.live(block);
  const bool units = context.plan.first_half_units() > 0, pooled = context.plan.pools();
  // The pointer to the block in a row's first pixel; null if the images are absent.
  auto row_of = [&](const auto& images, ptrdiff_t pixel) {
    return images.present()
               ? context.image(images, task.client, image) + pixel * images.pitch + block * L
               : nullptr;
  };
  const auto [max_grad, mean_grad] =
      pool_gradients(args, context, buffers, task, image, block, scratch.pool_edges);
  const PoolSources<T> sources{row_of(args.x, 0),
                               args.x.pitch,
                               live,
                               max_grad,
                               mean_grad,
                               scratch.pool_edges,
                               static_cast<int>(context.plan.edges.size())};
  PoolInputGrad<T> pools{g, sources, PoolScratch<T>(g, scratch.pools)};
  for (int h = 0; h < g.height; ++h) {
    if (pooled) {
      g.stride == 1 ? pools.template next<1>(h, scratch.pool_row)
                    : pools.template next<2>(h, scratch.pool_row);
    }
    const ptrdiff_t pixel = static_cast<ptrdiff_t>(h) * g.width;
    const InputGradRow<T> row{pooled ? scratch.pool_row : nullptr,
                              units ? scratch.grad_in.at(block, h, 0) : nullptr,
                              row_of(args.x, pixel),
                              row_of(args.base, pixel),
                              pixel,
                              row_of(args.grad_x, pixel)};
    live == L ? write_input_grad_row(args, context, task.client, row, scratch.pool_edges, L)
              : write_input_grad_row(args, context, task.client, row, scratch.pool_edges, live);
  }
}

template <class T>
void write_input_grad(const MixedOpBackward<T>& args, const Context<T>& context,
                      const BackwardBuffers<T>& buffers, const Task& task, int64_t image,
                      const InputScratch<T>& scratch) {
  const Geometry& g = context.geometry;
  if (context.plan.pools()) PoolScratch<T>(g, scratch.pools).clear(g);
  for (int block = 0; block < context.layout.blocks; ++block) {
    write_input_grad_block(args, context, buffers, task, image, block, scratch);
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
  Ahead<T> ahead;
  if (index == 0) ahead = {context.x_image(task.client, image + 1), context.x_row()};
  unit_backward(
      context, unit, packed,
      UnitGradient<T>{buffers.gradient(context, task.client, unit.norm),
                      context.norm(task.client, unit.norm).mean, grad, pitch,
                      context.z_image(index, task.client, image), weight_grad, need_input, ahead},
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
