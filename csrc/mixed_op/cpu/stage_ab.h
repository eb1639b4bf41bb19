// Stages A and B, forward: relu, depthwise and pointwise convolutions, with batch-norm sums taken
// while results are in registers. Stage A reads x, stage B the normalised halves of A.
#pragma once

#include "mixed_op/cpu/context.h"
#include "mixed_op/cpu/pool.h"

namespace metadnas::METADNAS_ISA {

// partial: per client and image, [norm][mean, M2][channel].
template <class T>
double* image_partial(const Context<T>& context, double* partial, int64_t client, int64_t image,
                      int slot) {
  const Geometry& g = context.geometry;
  return partial + ((client * g.images + image) * context.norms() + slot) * 2 * g.channels;
}

// One unit on one image: z and, where `partial` is given, the image's mean and M2.
template <class T>
void unit_forward(const Context<T>& context, const Unit& unit, const PackedUnit<T>& packed,
                  const PaddedImage<T>& in, T* z, double* partial, T* strip, ShiftedSums<T>* sums) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const Strip& cut = context.layout.out_strip;
  const ptrdiff_t plane = static_cast<ptrdiff_t>(cut.capacity) * L;
  for (int block = 0; block < context.layout.blocks; ++block) sums[block] = ShiftedSums<T>{};
  for (int row0 = 0; row0 < g.out_height; row0 += cut.rows) {
    const int rows = g.out_height - row0 < cut.rows ? g.out_height - row0 : cut.rows;
    unit_strip(context, unit, packed, in, row0, rows, strip, plane);
    T* z_strip = z + static_cast<ptrdiff_t>(row0) * g.out_width * g.channels;
    auto epilogue = [&]<int MP>(int block, int p0, int valid, Vec<T>(&acc)[MP]) METADNAS_INLINE {
      const int live = context.layout.live(block);
      T* to = z_strip + static_cast<ptrdiff_t>(p0) * g.channels + block * L;
      ShiftedSums<T>& total = sums[block];
      if (row0 == 0 && p0 == 0) total.shift = acc[0];
      const Vec<T> shift = total.shift;
      Vec<T> s[2] = {}, q[2] = {};
      if (valid == MP && live == L) {
        unroll<MP>([&]<int p>() METADNAS_INLINE {
          store(to + static_cast<ptrdiff_t>(p) * g.channels, acc[p]);
          const Vec<T> d = acc[p] - shift;
          s[p % 2] += d;
          q[p % 2] += d * d;
        });
      } else {
        unroll<MP>([&]<int p>() METADNAS_INLINE {
          if (p < valid) {
            store_first(to + static_cast<ptrdiff_t>(p) * g.channels, acc[p], live);
            const Vec<T> d = acc[p] - shift;
            s[p % 2] += d;
            q[p % 2] += d * d;
          }
        });
      }
      total.add(s[0] + s[1], q[0] + q[1]);
    };
    pointwise(strip, plane, context.in_channels(unit), packed.matrix,
              context.layout.padded_channels, rows * g.out_width, epilogue);
  }
  if (partial == nullptr) return;
  for (int block = 0; block < context.layout.blocks; ++block) {
    sums[block].finish(g.out_pixels(), context.layout.live(block), partial + block * L,
                       partial + g.channels + block * L);
  }
}

// Mean and M2 of both pools of one image; the pooled values themselves are cheap to make again.
template <class T>
void pool_statistics(const Context<T>& context, const T* x, const PoolRow<T>& row,
                     double* max_partial, double* mean_partial) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  for (int block = 0; block < context.layout.blocks; ++block) {
    const int live = context.layout.live(block);
    ShiftedSums<T> largest, mean;
    for (int h = 0; h < g.out_height; ++h) {
      pool_row(g, x + block * L, live, h, row);
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
    const ptrdiff_t at = block * L;
    if (max_partial)
      largest.finish(g.out_pixels(), live, max_partial + at, max_partial + g.channels + at);
    if (mean_partial)
      mean.finish(g.out_pixels(), live, mean_partial + at, mean_partial + g.channels + at);
  }
}

template <class T>
struct ForwardScratch {
  PaddedImage<T> in;
  T* strip;
  T* pool;
  ShiftedSums<T>* sums;

  ForwardScratch(const Context<T>& context, const PaddedImage<T>& image) : in(image) {
    const Layout<T>& l = context.layout;
    const int64_t strip_size = int64_t{2} * l.blocks * l.out_strip.capacity * kLanes<T>;
    const int64_t pool_size = PoolRow<T>::size(context.geometry);
    Arena& arena = worker_arena();
    arena.reset(static_cast<size_t>(in.size() + strip_size + pool_size) * sizeof(T) +
                static_cast<size_t>(l.blocks) * sizeof(ShiftedSums<T>) + 4 * 64);
    in.data = arena.take<T>(in.size());
    strip = arena.take<T>(strip_size);
    pool = arena.take<T>(pool_size);
    sums = arena.take<ShiftedSums<T>>(l.blocks);
    in.clear();
  }
};

template <class T>
void stage_a(const Context<T>& context, const Task& task, double* partial) {
  ForwardScratch<T> scratch(context, context.layout.input_image());
  const bool statistics = context.args.training;
  const Plan& plan = context.plan;
  const int units = plan.first_half_units();
  for (int64_t image = task.begin; image < task.end; ++image) {
    const T* x = context.x_image(task.client, image);
    auto partial_of = [&](int slot) {
      return statistics ? image_partial(context, partial, task.client, image, slot) : nullptr;
    };
    if (units > 0) pad_relu(context.layout, x, scratch.in);
    for (int u = 0; u < units; ++u) {
      const Unit& unit = plan.units[u];
      unit_forward(context, unit, context.packed(task.client, u), scratch.in,
                   context.args.z_image(u, task.client, image), partial_of(unit.norm),
                   scratch.strip, scratch.sums);
    }
    if (statistics && (plan.max_pool.present() || plan.avg_pool.present())) {
      pool_statistics(context, x, PoolRow<T>(context.geometry, scratch.pool),
                      plan.max_pool.present() ? partial_of(plan.max_pool.norm) : nullptr,
                      plan.avg_pool.present() ? partial_of(plan.avg_pool.norm) : nullptr);
    }
  }
}

template <class T>
void stage_b(const Context<T>& context, const Task& task, double* partial) {
  ForwardScratch<T> scratch(context, context.layout.output_image());
  const Plan& plan = context.plan;
  for (int u = plan.first_half_units(); u < context.units(); ++u) {
    const Unit& unit = plan.units[u];
    const NormVectors<T> norm = context.norm(task.client, plan.units[unit.source].norm);
    for (int64_t image = task.begin; image < task.end; ++image) {
      pad_normalised_relu(context.layout, context.args.z_image(unit.source, task.client, image),
                          norm.mean, norm.scale, norm.beta, scratch.in);
      unit_forward(context, unit, context.packed(task.client, u), scratch.in,
                   context.args.z_image(u, task.client, image),
                   context.args.training
                       ? image_partial(context, partial, task.client, image, unit.norm)
                       : nullptr,
                   scratch.strip, scratch.sums);
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
