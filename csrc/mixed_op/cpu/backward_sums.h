// Backward stage 1: the sums that batch norm's gradient and the gradient of the mixing weights
// need, over the output gradient and every candidate's result.
#pragma once

#include "mixed_op/cpu/context.h"
#include "mixed_op/cpu/pool.h"

namespace metadnas::METADNAS_ISA {

// Per client and image, `rows(context)` rows of `channels` doubles:
// [norm]: sum of grad * (value - mean); then the sum of grad; then the sum of grad * x.
template <class T>
struct GradientSums {
  const Context<T>& context;
  double* data;

  static int rows(const Context<T>& context) { return context.norms() + 2; }
  static int64_t size(const Context<T>& context) {
    return context.geometry.clients * context.geometry.images * rows(context) *
           context.geometry.channels;
  }
  double* at(int64_t client, int64_t image, int row) const {
    const Geometry& g = context.geometry;
    return data + ((client * g.images + image) * rows(context) + row) * g.channels;
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

template <class T>
inline void write_lanes(Vec<T> v, int live, double* to) {
  for (int i = 0; i < live; ++i) to[i] = static_cast<double>(v[i]);
}

template <class T>
void block_sums(const Context<T>& context, const GradientSums<T>& sums, const T* grad_out,
                const Task& task, int64_t image, int block, const PoolRow<T>& pool, T* grad_row) {
  constexpr int L = kLanes<T>;
  constexpr int kMost = 10;  // 5 units that end a candidate, 2 pools, grad, grad * x, and to spare
  const Geometry& g = context.geometry;
  const Plan& plan = context.plan;
  const int live = context.layout.live(block);
  const int at = block * L;
  const bool pools = plan.max_pool.present() || plan.avg_pool.present();
  const T* x = context.x_image(task.client, image);
  Vec<T> total[kMost] = {};
  int rows[kMost];
  for (int h = 0; h < g.out_height; ++h) {
    const ptrdiff_t offset = static_cast<ptrdiff_t>(h) * g.out_width * g.channels + at;
    int used = 0;
    // Row sums first: adding pixel by pixel to a long sum would cost digits.
    auto add = [&](int row, auto&& value) METADNAS_INLINE {
      Vec<T> s[2] = {};
      for (int w = 0; w < g.out_width; ++w) s[w % 2] += value(w);
      rows[used] = row;
      total[used++] += s[0] + s[1];
    };
    auto grad = [&](int w) METADNAS_INLINE { return load(grad_row + w * L); };
    for (int w = 0; w < g.out_width; ++w) {
      store(grad_row + w * L,
            load_first(grad_out + offset + static_cast<ptrdiff_t>(w) * g.channels, live));
    }
    add(context.norms(), grad);
    if (plan.identity != kAbsent) {
      add(context.norms() + 1, [&](int w) METADNAS_INLINE {
        return grad(w) * load_first(x + offset + static_cast<ptrdiff_t>(w) * g.channels, live);
      });
    }
    if (pools) pool_row(g, x + at, live, h, pool);
    auto add_pool = [&](const Pool& p, const T* values) {
      if (!p.present()) return;
      const Vec<T> mean = load(context.norm(task.client, p.norm).mean + at);
      add(p.norm, [&](int w) METADNAS_INLINE { return grad(w) * (load(values + w * L) - mean); });
    };
    add_pool(plan.max_pool, pool.max);
    add_pool(plan.avg_pool, pool.mean);
    for (int u = 0; u < context.units(); ++u) {
      const Unit& unit = plan.units[u];
      if (unit.candidate == kAbsent) continue;
      const T* z = context.args.z_image(u, task.client, image) + offset;
      const Vec<T> mean = load(context.norm(task.client, unit.norm).mean + at);
      add(unit.norm, [&](int w) METADNAS_INLINE {
        return grad(w) * (load_first(z + static_cast<ptrdiff_t>(w) * g.channels, live) - mean);
      });
    }
    if (h + 1 < g.out_height) continue;
    for (int i = 0; i < used; ++i) {
      write_lanes<T>(total[i], live, sums.at(task.client, image, rows[i]) + at);
    }
  }
}

template <class T>
void backward_sums(const Context<T>& context, const GradientSums<T>& sums, const T* grad_out,
                   const Task& task) {
  const Geometry& g = context.geometry;
  const int64_t pool_size = PoolRow<T>::size(g);
  Arena& arena = worker_arena();
  arena.reset(static_cast<size_t>(pool_size + g.out_width * kLanes<T>) * sizeof(T) + 2 * 64);
  const PoolRow<T> pool(g, arena.take<T>(pool_size));
  T* grad_row = arena.take<T>(int64_t{g.out_width} * kLanes<T>);
  for (int64_t image = task.begin; image < task.end; ++image) {
    const T* grad = grad_out + (task.client * g.images + image) * g.out_image();
    for (int block = 0; block < context.layout.blocks; ++block) {
      block_sums(context, sums, grad, task, image, block, pool, grad_row);
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
