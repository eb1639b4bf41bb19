// Stage C, forward: out = sum over candidates of weight * batch norm(z), plus the weighted
// identity. `none` adds nothing.
#pragma once

#include "mixed_op/cpu/context.h"
#include "mixed_op/cpu/pool.h"

namespace metadnas::METADNAS_ISA {

// row[w] += scale * (value(w) - mean)
template <class T, class Value>
METADNAS_INLINE inline void add_normalised(T* row, int width, const NormVectors<T>& norm, int at,
                                           T weight, Value&& value) {
  const Vec<T> scale = load(norm.scale + at) * weight;
  const Vec<T> mean = load(norm.mean + at);
  for (int w = 0; w < width; ++w) {
    T* to = row + w * kLanes<T>;
    store(to, load(to) + scale * (value(w) - mean));
  }
}

template <class T>
void combine_row(const Context<T>& context, const Task& task, int64_t image, int block, int h,
                 const PoolRow<T>& pool, T* row) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const Plan& plan = context.plan;
  const int live = context.layout.live(block);
  const int at = block * L;
  const ptrdiff_t offset = static_cast<ptrdiff_t>(h) * g.out_width * g.channels + at;
  const T* x = context.x_image(task.client, image);

  Vec<T> constant{};
  auto add_constant = [&](int candidate, int slot) {
    constant +=
        load(context.norm(task.client, slot).beta + at) * context.weight(task.client, candidate);
  };
  for (const Unit& unit : plan.units) {
    if (unit.candidate != kAbsent) add_constant(unit.candidate, unit.norm);
  }
  for (const Pool& p : {plan.max_pool, plan.avg_pool}) {
    if (p.present()) add_constant(p.candidate, p.norm);
  }
  for (int w = 0; w < g.out_width; ++w) store(row + w * L, constant);

  if (plan.identity != kAbsent) {
    const T weight = context.weight(task.client, plan.identity);
    for (int w = 0; w < g.out_width; ++w) {
      T* to = row + w * L;
      store(to, load(to) +
                    load_first(x + offset + static_cast<ptrdiff_t>(w) * g.channels, live) * weight);
    }
  }
  if (plan.max_pool.present() || plan.avg_pool.present()) {
    pool_row(g, x + at, live, h, pool);
    auto add_pool = [&](const Pool& p, const T* values) {
      if (!p.present()) return;
      add_normalised(row, g.out_width, context.norm(task.client, p.norm), at,
                     context.weight(task.client, p.candidate),
                     [&](int w) METADNAS_INLINE { return load(values + w * L); });
    };
    add_pool(plan.max_pool, pool.max);
    add_pool(plan.avg_pool, pool.mean);
  }
  for (int u = 0; u < context.units(); ++u) {
    const Unit& unit = plan.units[u];
    if (unit.candidate == kAbsent) continue;
    const T* z = context.args.z_image(u, task.client, image) + offset;
    add_normalised(row, g.out_width, context.norm(task.client, unit.norm), at,
                   context.weight(task.client, unit.candidate), [&](int w) METADNAS_INLINE {
                     return load_first(z + static_cast<ptrdiff_t>(w) * g.channels, live);
                   });
  }
}

template <class T>
void stage_c(const Context<T>& context, const Task& task, T* out) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const int64_t pool_size = PoolRow<T>::size(g);
  Arena& arena = worker_arena();
  arena.reset(static_cast<size_t>(pool_size + g.out_width * L) * sizeof(T) + 2 * 64);
  const PoolRow<T> pool(g, arena.take<T>(pool_size));
  T* row = arena.take<T>(int64_t{g.out_width} * L);
  for (int64_t image = task.begin; image < task.end; ++image) {
    T* to = out + (task.client * g.images + image) * g.out_image();
    for (int h = 0; h < g.out_height; ++h) {
      for (int block = 0; block < context.layout.blocks; ++block) {
        combine_row(context, task, image, block, h, pool, row);
        T* pixel = to + static_cast<ptrdiff_t>(h) * g.out_width * g.channels + block * L;
        const int live = context.layout.live(block);
        for (int w = 0; w < g.out_width; ++w) {
          store_first(pixel + static_cast<ptrdiff_t>(w) * g.channels, load(row + w * L), live);
        }
      }
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
