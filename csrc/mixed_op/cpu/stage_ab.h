// Stages A and B, forward: relu, depthwise and pointwise convolutions, with batch-norm sums taken
// while results are in registers. Stage A reads x, stage B the normalised halves of A.
#pragma once

#include "mixed_op/cpu/pool.h"
#include "mixed_op/cpu/unit.h"

namespace metadnas::METADNAS_ISA {

// Per client and image, [partial][mean, M2][channel].
template <class T>
struct ImageStatistics {
  const Context<T>& context;
  double* data;

  static int64_t size(const Context<T>& context) {
    return context.geometry.clients * context.geometry.images * row(context);
  }
  static int64_t row(const Context<T>& context) {
    return int64_t{context.plan.partials} * 2 * context.geometry.channels;
  }
  double* at(int64_t client, int64_t image, int partial) const {
    const Geometry& g = context.geometry;
    return data + (client * g.images + image) * row(context) + int64_t{partial} * 2 * g.channels;
  }
  void write(int64_t client, int64_t image, int partial, int block,
             const ChunkMoments<T>& sums) const {
    double* to = at(client, image, partial) + block * kLanes<T>;
    sums.finish(context.geometry.out_pixels(), context.layout.live(block), to,
                to + context.geometry.channels);
  }
};

template <class T>
struct ForwardScratch {
  PaddedImage<T> in;
  T* strip;
  T* pool;
  ChunkMoments<T>* sums;

  ForwardScratch(const Context<T>& context, const PaddedImage<T>& image) : in(image) {
    const Layout<T>& l = context.layout;
    const int64_t strip_size = int64_t{2} * l.blocks * l.out_strip.capacity * kLanes<T>;
    const int64_t pool_size = PoolRow<T>::size(context.geometry);
    Arena& arena = worker_arena();
    arena.reset(static_cast<size_t>(in.size() + strip_size + pool_size) * sizeof(T) +
                static_cast<size_t>(l.blocks) * sizeof(ChunkMoments<T>) + 4 * 64);
    in.data = arena.take<T>(in.size());
    strip = arena.take<T>(strip_size);
    pool = arena.take<T>(pool_size);
    sums = arena.take<ChunkMoments<T>>(l.blocks);
    in.clear();
  }
};

template <class T>
void forward_unit(const Context<T>& context, const Task& task, int64_t image, int index,
                  const ImageStatistics<T>& statistics, const ForwardScratch<T>& scratch,
                  const Ahead<T>& ahead) {
  const Unit& unit = context.plan.units[index];
  unit_forward(context, unit, context.packed(task.client, index), scratch.in,
               context.z_image(index, task.client, image), scratch.strip, scratch.sums, ahead);
  if (!context.args.training) return;
  const int partial = context.plan.norms[unit.norm].partial;
  for (int block = 0; block < context.layout.blocks; ++block) {
    statistics.write(task.client, image, partial, block, scratch.sums[block]);
  }
}

// Statistics of both pools of one image; the pooled values themselves are cheap to make again.
template <class T>
void pool_statistics(const Context<T>& context, const Task& task, int64_t image,
                     const PoolRow<T>& row, const ImageStatistics<T>& statistics) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const T* x = context.x_image(task.client, image);
  for (int block = 0; block < context.layout.blocks; ++block) {
    ChunkMoments<T> largest, mean;
    for (int h = 0; h < g.out_height; ++h) {
      pool_row(g, x + block * L, context.args.x.pitch, context.layout.live(block), h, row);
      if (h == 0) {
        largest.shift = load(row.max);
        mean.shift = load(row.mean);
      }
      Vec<T> s[2] = {}, q[2] = {};
      for (int w = 0; w < g.out_width; ++w) {
        const Vec<T> a = load(row.max + w * L) - largest.shift;
        const Vec<T> b = load(row.mean + w * L) - mean.shift;
        s[0] += a;
        q[0] += a * a;
        s[1] += b;
        q[1] += b * b;
      }
      largest.add(s[0], q[0]);
      mean.add(s[1], q[1]);
    }
    const auto partial_of = [&](auto&& pool) {
      for (const Edge& edge : context.plan.edges) {
        if (pool(edge).present()) return context.plan.norms[pool(edge).norm].partial;
      }
      return kAbsent;
    };
    const int max_at = partial_of([](const Edge& e) -> const Pool& { return e.max_pool; });
    const int mean_at = partial_of([](const Edge& e) -> const Pool& { return e.avg_pool; });
    if (max_at != kAbsent) statistics.write(task.client, image, max_at, block, largest);
    if (mean_at != kAbsent) statistics.write(task.client, image, mean_at, block, mean);
  }
}

template <class T>
void stage_a(const Context<T>& context, const Task& task, const ImageStatistics<T>& statistics) {
  ForwardScratch<T> scratch(context, context.layout.input_image());
  const int units = context.plan.first_half_units();
  const bool pools = context.args.training && context.plan.pools();
  const PoolRow<T> row(context.geometry, scratch.pool);
  for (int64_t image = task.begin; image < task.end; ++image) {
    if (units > 0) {
      pad_relu(context.layout, context.x_image(task.client, image), context.args.x.pitch,
               scratch.in);
    }
    const Ahead<T> next{context.x_image(task.client, image + 1), context.x_row()};
    for (int u = 0; u < units; ++u) {
      forward_unit(context, task, image, u, statistics, scratch, u == 0 ? next : Ahead<T>{});
    }
    if (pools) pool_statistics(context, task, image, row, statistics);
  }
  finish_streaming();
}

template <class T>
void stage_b(const Context<T>& context, const Task& task, const ImageStatistics<T>& statistics) {
  ForwardScratch<T> scratch(context, context.layout.output_image());
  for (int u = context.plan.first_half_units(); u < context.units(); ++u) {
    const int first = context.plan.units[u].source;
    const NormVectors<T> norm = context.norm(task.client, context.plan.units[first].norm);
    for (int64_t image = task.begin; image < task.end; ++image) {
      pad_normalised_relu(context.layout, context.z_image(first, task.client, image), norm,
                          scratch.in);
      const Ahead<T> next{context.z_image(first, task.client, image + 1), context.out_row()};
      forward_unit(context, task, image, u, statistics, scratch, next);
    }
  }
  finish_streaming();
}

}  // namespace metadnas::METADNAS_ISA
