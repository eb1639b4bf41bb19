// Stage C, forward: out = sum over candidates of weight * batch norm(z), plus the weighted
// identity. `none` adds nothing.
#pragma once

#include "mixed_op/cpu/context.h"
#include "mixed_op/cpu/pool.h"
#include "mixed_op/cpu/streams.h"

namespace metadnas::METADNAS_ISA {

// All of an edge's candidates on one channel block of an image, except results that were not kept;
// pools as the rows of `pool`. scale_of(norm, weight) gives a batch norm's scale; the identity has
// its mixing weight and mean 0.
template <class T, class Of>
Streams<T> edge_streams(const Context<T>& context, int e, int64_t client, int64_t image, int block,
                        const PoolRow<T>& pool, Of&& scale_of) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const Edge& edge = context.plan.edges[e];
  Streams<T> streams;
  auto add = [&](int norm, int64_t weight, const T* data, ptrdiff_t row, ptrdiff_t pitch) {
    streams.add({data, row, pitch, load(context.norm(client, norm).mean + block * L),
                 scale_of(norm, weight), norm});
  };
  for (int u = 0; u < context.units(); ++u) {
    const Unit& unit = context.plan.units[u];
    if (unit.edge != e || unit.intermediate()) continue;
    const T* z = context.z_image(u, client, image);
    const ptrdiff_t row = static_cast<ptrdiff_t>(g.out_width) * g.channels;
    if (z != nullptr) add(unit.norm, unit.weight, z + block * L, row, g.channels);
  }
  if (edge.max_pool.present()) add(edge.max_pool.norm, edge.max_pool.weight, pool.max, 0, L);
  if (edge.avg_pool.present()) add(edge.avg_pool.norm, edge.avg_pool.weight, pool.mean, 0, L);
  if (edge.identity != kAbsent) {
    const ptrdiff_t pitch = context.args.x.pitch;
    streams.add({context.x_image(client, image) + block * L, g.out_width * pitch, pitch, Vec<T>{},
                 splat(context.weight(client, edge.identity)), kAbsent});
  }
  return streams;
}

// Sum over an edge's batch norms of weight * beta.
template <class T>
Vec<T> edge_constant(const Context<T>& context, int e, int64_t client, int block) {
  const Edge& edge = context.plan.edges[e];
  Vec<T> total{};
  auto add = [&](int norm, int64_t weight) {
    total +=
        load(context.norm(client, norm).beta + block * kLanes<T>) * context.weight(client, weight);
  };
  for (const Unit& unit : context.plan.units) {
    if (unit.edge == e && !unit.intermediate()) add(unit.norm, unit.weight);
  }
  for (const Pool& p : {edge.max_pool, edge.avg_pool}) {
    if (p.present()) add(p.norm, p.weight);
  }
  return total;
}

// One edge of one channel block of an image: what to add up, and where.
template <class T>
struct EdgeSum {
  Streams<T> streams;
  Vec<T> constant;
  T* out;
  ptrdiff_t pitch;
  bool add;
};

template <class T>
void stage_c(const MixedOpForward<T>& args, const Context<T>& context, const Task& task) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const int edges = static_cast<int>(context.plan.edges.size());
  const int64_t pool_size = PoolRow<T>::size(g);
  Arena& arena = worker_arena();
  arena.reset(static_cast<size_t>(pool_size) * sizeof(T) +
              static_cast<size_t>(edges) * sizeof(EdgeSum<T>) + 2 * 64);
  const PoolRow<T> pool(g, arena.take<T>(pool_size));
  EdgeSum<T>* sums = arena.take<EdgeSum<T>>(edges);
  auto scale_of = [&](int block) {
    return [&context, &task, block](int norm, int64_t weight) {
      return context.norm(task.client, norm).scale(block * L) * context.weight(task.client, weight);
    };
  };
  auto combine = [&](const EdgeSum<T>& sum, int h, int live) {
    T* to = sum.out + h * g.out_width * sum.pitch;
    with_count(sum.streams.count, [&]<int N>() METADNAS_INLINE {
      if (live == L) {
        combine_row<N, true>(sum.streams, h, sum.constant, sum.add, g.out_width, live, to,
                             sum.pitch);
      } else {
        combine_row<N, false>(sum.streams, h, sum.constant, sum.add, g.out_width, live, to,
                              sum.pitch);
      }
    });
  };
  for (int64_t image = task.begin; image < task.end; ++image) {
    const T* x = context.x_image(task.client, image);
    for (int block = 0; block < context.layout.blocks; ++block) {
      const int live = context.layout.live(block);
      for (int e = 0; e < edges; ++e) {
        sums[e] = {edge_streams(context, e, task.client, image, block, pool, scale_of(block)),
                   edge_constant(context, e, task.client, block),
                   context.image(args.out[e].images, task.client, image) + block * L,
                   args.out[e].images.pitch, args.out[e].add};
      }
      for (int h = 0; h < g.out_height; ++h) {
        if (context.plan.pools()) pool_row(g, x + block * L, args.x.pitch, live, h, pool);
        for (int e = 0; e < edges; ++e) combine(sums[e], h, live);
      }
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
