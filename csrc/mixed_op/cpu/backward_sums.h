// Backward stage 1: the sums that batch norm's gradient and the gradient of the mixing weights
// need, over the output gradient and every candidate's result.
#pragma once

#include "mixed_op/cpu/remake.h"
#include "mixed_op/cpu/stage_c.h"

namespace metadnas::METADNAS_ISA {

// Per client and image, `rows(context)` rows of `channels` doubles:
// [norm]: sum of grad * (value - mean); then per edge the sum of grad, and of grad * x.
template <class T>
struct GradientSums {
  const Context<T>& context;
  double* data;

  static int rows(const Context<T>& context) {
    return context.norms() + 2 * static_cast<int>(context.plan.edges.size());
  }
  static int64_t size(const Context<T>& context) {
    return context.geometry.clients * context.geometry.images * rows(context) *
           context.geometry.channels;
  }
  int grad_row(int edge) const { return context.norms() + 2 * edge; }
  int identity_row(int edge) const { return grad_row(edge) + 1; }
  double* at(int64_t client, int64_t image, int row) const {
    const Geometry& g = context.geometry;
    return data + ((client * g.images + image) * rows(context) + row) * g.channels;
  }
  void write(int64_t client, int64_t image, int row, int block, Vec<T> v) const {
    double* to = at(client, image, row) + block * kLanes<T>;
    for (int i = 0; i < context.layout.live(block); ++i) to[i] = static_cast<double>(v[i]);
  }
  // Sum over a client's images, in image order.
  void total(int64_t client, int row, double* to) const {
    const int channels = context.geometry.channels;
    for (int c = 0; c < channels; ++c) to[c] = 0;
    for (int64_t image = 0; image < context.args.count(client); ++image) {
      const double* from = at(client, image, row);
      for (int c = 0; c < channels; ++c) to[c] += from[c];
    }
  }
};

// One edge of one channel block of an image.
template <class T>
struct EdgeProducts {
  Streams<T> streams;
  const T* grad;
  ptrdiff_t pitch;
  Vec<T> sums[kMaxStreams + 1];
};

// Everything that is at hand: kept results, pools, x.
template <class T>
void block_sums(const MixedOpBackward<T>& args, const Context<T>& context,
                const GradientSums<T>& sums, const Task& task, int64_t image, int block,
                const PoolRow<T>& pool, EdgeProducts<T>* edges) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const int live = context.layout.live(block);
  const int count = static_cast<int>(context.plan.edges.size());
  for (int e = 0; e < count; ++e) {
    const Images<const T>& grad = args.grad_out[e];
    edges[e] = {edge_streams(context, e, task.client, image, block, pool,
                             [](int, int64_t) { return Vec<T>{}; }),
                context.image(grad, task.client, image) + block * L,
                grad.pitch,
                {}};
  }
  for (int h = 0; h < g.out_height; ++h) {
    if (context.plan.pools()) {
      pool_row(g, context.x_image(task.client, image) + block * L, args.x.pitch, live, h, pool);
    }
    for (int e = 0; e < count; ++e) {
      EdgeProducts<T>& edge = edges[e];
      const T* grad = edge.grad + h * g.out_width * edge.pitch;
      with_count(edge.streams.count, [&]<int N>() METADNAS_INLINE {
        if (live == L) {
          product_row<N, true>(edge.streams, h, grad, edge.pitch, g.out_width, live, edge.sums);
        } else {
          product_row<N, false>(edge.streams, h, grad, edge.pitch, g.out_width, live, edge.sums);
        }
      });
    }
  }
  for (int e = 0; e < count; ++e) {
    sums.write(task.client, image, sums.grad_row(e), block, edges[e].sums[0]);
    for (int k = 0; k < edges[e].streams.count; ++k) {
      const int norm = edges[e].streams.of[k].norm;
      const int row = norm == kAbsent ? sums.identity_row(e) : norm;
      sums.write(task.client, image, row, block, edges[e].sums[1 + k]);
    }
  }
}

// The same sum for a result that has to be made again from `in`.
template <class T>
void remade_sums(const MixedOpBackward<T>& args, const Context<T>& context,
                 const GradientSums<T>& sums, const Task& task, int64_t image, int index,
                 const PaddedImage<T>& in, T* strip, Vec<T>* totals) {
  constexpr int L = kLanes<T>;
  const Unit& unit = context.plan.units[index];
  const Images<const T>& grads = args.grad_out[unit.edge];
  const T* grad = context.image(grads, task.client, image);
  const T* mean = context.norm(task.client, unit.norm).mean;
  for (int block = 0; block < context.layout.blocks; ++block) totals[block] = Vec<T>{};
  auto use = [&]<int MP>(int block, int p0, int valid, Vec<T>(&acc)[MP]) METADNAS_INLINE {
    const int live = context.layout.live(block);
    const T* from = grad + p0 * grads.pitch + block * L;
    const Vec<T> m = load(mean + block * L);
    Vec<T> s[2] = {};
    unroll<MP>([&]<int p>() METADNAS_INLINE {
      if (p < valid) s[p % 2] += load_first(from + p * grads.pitch, live) * (acc[p] - m);
    });
    totals[block] += s[0] + s[1];
  };
  unit_results(context, unit, context.packed(task.client, index), in, strip, Ahead<T>{}, use);
  for (int block = 0; block < context.layout.blocks; ++block) {
    sums.write(task.client, image, unit.norm, block, totals[block]);
  }
}

template <class T>
void backward_sums(const MixedOpBackward<T>& args, const Context<T>& context,
                   const GradientSums<T>& sums, const Task& task) {
  const int64_t pool_size = PoolRow<T>::size(context.geometry);
  const int64_t edges = static_cast<int64_t>(context.plan.edges.size());
  const int blocks = context.layout.blocks;
  const bool remaking = context.plan.transients > 0;
  Remaker<T> remaker(context);
  PaddedImage<T> middle = context.layout.output_image();
  Arena& arena = worker_arena();
  arena.reset(
      static_cast<size_t>(pool_size) * sizeof(T) +
      static_cast<size_t>(edges) * sizeof(EdgeProducts<T>) +
      static_cast<size_t>(blocks) * sizeof(Vec<T>) + 3 * 64 +
      (remaking ? remaker.bytes() + static_cast<size_t>(middle.size()) * sizeof(T) + 64 : 0));
  const PoolRow<T> pool(context.geometry, arena.take<T>(pool_size));
  EdgeProducts<T>* products = arena.take<EdgeProducts<T>>(edges);
  Vec<T>* totals = arena.take<Vec<T>>(blocks);
  if (remaking) {
    remaker.take(arena);
    middle.data = arena.take<T>(middle.size());
    middle.clear();
  }
  for (int64_t image = task.begin; image < task.end; ++image) {
    for (int block = 0; block < blocks; ++block) {
      block_sums(args, context, sums, task, image, block, pool, products);
    }
    if (!remaking) continue;
    remaker.read_input(task, image);
    for (int u = 0; u < context.units(); ++u) {
      const Unit& unit = context.plan.units[u];
      if (unit.kept != kAbsent || unit.intermediate()) continue;
      if (unit.source != kFromInput) {
        pad_normalised_relu(context.layout, remaker.result(task, image, unit.source),
                            context.norm(task.client, context.plan.units[unit.source].norm),
                            middle);
      }
      remade_sums(args, context, sums, task, image, u,
                  unit.source == kFromInput ? remaker.in : middle, remaker.strip, totals);
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
