// Gradient of both pools with respect to their input, for all edges that read it at once.
#pragma once

#include "mixed_op/cpu/pool.h"

namespace metadnas::METADNAS_ISA {

// Gradient that reaches a pooled value v: slope * (v - mean) + shift + sum over edges of scale *
// gradient. One channel block.
template <class T>
struct PoolGradient {
  bool present = false;
  Vec<T> slope{};
  Vec<T> mean{};
  Vec<T> shift{};

  METADNAS_INLINE Vec<T> operator()(Vec<T> value) const { return slope * (value - mean) + shift; }
};

// An edge's output gradient, and its factor for either pool (0 where the edge has no such pool).
template <class T>
struct PoolEdge {
  const T* grad;
  ptrdiff_t pitch;
  Vec<T> max_scale;
  Vec<T> mean_scale;
};

// Rows of one channel block, each out_width + 2 vectors wide: a border pixel on either side. An
// image is gone through once, from top to bottom, so only a few rows of either side are kept.
template <class T>
struct PoolScratch {
  // One output row: the tap that holds the maximum, 0..8, as a number of T (-1 on the border), and
  // the gradients that reach the maximum and each value of the mean.
  struct Output {
    T* winner;
    T* grad_max;
    T* grad_mean;
  };
  // One input row around each output column: the maximum, its column 0..2, and the sum.
  struct Input {
    T* best;
    T* which;
    T* sum;
  };

  T* memory;
  ptrdiff_t pitch;
  int out_height;

  static int64_t row(const Geometry& g) { return int64_t{g.out_width + 2} * kLanes<T>; }
  static int64_t size(const Geometry& g) { return (3 * 3 + 3 * 3 + 3 + 1) * row(g); }
  PoolScratch(const Geometry& g, T* memory)
      : memory(memory), pitch(row(g)), out_height(g.out_height) {}

  Input input(int h) const {
    T* at = memory + (h % 3) * 3 * pitch;
    return {at, at + pitch, at + 2 * pitch};
  }
  Output output(int h) const {
    T* at = memory + (9 + (h < 0 || h >= out_height ? 3 : h % 3) * 3) * pitch;
    return {at, at + pitch, at + 2 * pitch};
  }
  T* column() const { return memory + 21 * pitch; }

  // Border pixels and the row beyond the edges: they win nothing and add nothing.
  void clear(const Geometry& g) const {
    for (const int h : {0, 1, 2, -1}) {
      const Output row = output(h < out_height ? h : -1);
      for (int w = 0; w < g.out_width + 2; ++w) {
        store(row.winner + w * kLanes<T>, splat(T{-1}));
        store(row.grad_mean + w * kLanes<T>, Vec<T>{});
      }
    }
  }
};

// Whether v takes the place of the best so far, as PyTorch decides: later equal values do not, a
// NaN always does. Only kExact looks for NaN.
template <bool kExact, class V>
METADNAS_INLINE inline auto takes_over(V v, V best) {
  if constexpr (kExact) {
    return (v > best) | (v != v);
  } else {
    return v > best;
  }
}

// Maximum, its column and the sum of the up to three columns around each output column.
template <bool kExact, class T>
void pool_columns(const Geometry& g, const T* line, ptrdiff_t pitch, int live,
                  const typename PoolScratch<T>::Input& to) {
  constexpr int L = kLanes<T>;
  auto reduce = [&](int w, int first, int last, int lanes) METADNAS_INLINE {
    const T* middle = line + w * g.stride * pitch;
    Vec<T> best = load_first(middle + first * pitch, lanes);
    Vec<T> which = splat(static_cast<T>(first + 1));
    Vec<T> sum = best;
    for (int d = first + 1; d <= last; ++d) {
      const Vec<T> v = load_first(middle + d * pitch, lanes);
      const auto wins = takes_over<kExact>(v, best);
      best = wins ? v : best;
      which = wins ? splat(static_cast<T>(d + 1)) : which;
      sum += v;
    }
    store(to.best + w * L, best);
    store(to.which + w * L, which);
    store(to.sum + w * L, sum);
  };
  const int whole =
      g.width < 2 ? 0 : (g.width - 2) / g.stride;  // last output column with all three
  auto inner = [&](int lanes) METADNAS_INLINE {
    for (int w = 1; w <= whole; ++w) reduce(w, -1, 1, lanes);
  };
  reduce(0, 0, g.width > 1 ? 1 : 0, live);
  live == L ? inner(L) : inner(live);
  for (int w = whole + 1; w < g.out_width; ++w) reduce(w, -1, 0, live);
}

// What the backward pass of both pools reads of one channel block of an image.
template <class T>
struct PoolSources {
  const T* x;
  ptrdiff_t pitch;
  int live;
  PoolGradient<T> max_grad;
  PoolGradient<T> mean_grad;
  const PoolEdge<T>* edges;
  int edge_count;
};

// An edge's own part in the gradients of output row `h`.
template <class T>
void add_edge(const PoolEdge<T>& edge, int live, int h, const PoolShare<T>& share_of,
              const Geometry& g, const typename PoolScratch<T>::Output& to) {
  constexpr int L = kLanes<T>;
  const ptrdiff_t pitch = edge.pitch;
  const T* grad = edge.grad + h * g.out_width * pitch;
  const Vec<T> max_scale = edge.max_scale, mean_scale = edge.mean_scale;
  T* grad_max = to.grad_max + L;
  T* grad_mean = to.grad_mean + L;
  const int width = g.out_width;
  auto add = [&](int lanes) METADNAS_INLINE {
    for (int w = 0; w < width; ++w) {
      const Vec<T> v = load_first(grad + w * pitch, lanes);
      store(grad_max + w * L, load(grad_max + w * L) + max_scale * v);
      store(grad_mean + w * L, load(grad_mean + w * L) + mean_scale * v * share_of(w));
    }
  };
  live == L ? add(L) : add(live);
}

// Winners of an output row, and the gradients that reach each pooled value, from kRows reduced
// input rows. `first_tap`: that of the first row. Returns whether every sum is finite: if not, only
// the exact variant is right.
template <int kRows, bool kExact, class T>
bool pool_gather_rows(const Geometry& g, const PoolSources<T>& from, int h, int first_tap,
                      const typename PoolScratch<T>::Input (&in)[3],
                      const typename PoolScratch<T>::Output& to) {
  constexpr int L = kLanes<T>;
  const PoolShare<T> share_of(g, kRows);
  Vec<T> check{};  // NaN as soon as a sum is not finite
  for (int w = 0; w < g.out_width; ++w) {
    Vec<T> best = load(in[0].best + w * L);
    Vec<T> tap = load(in[0].which + w * L) + splat(static_cast<T>(first_tap));
    Vec<T> sum = load(in[0].sum + w * L);
    unroll<kRows - 1>([&]<int i>() METADNAS_INLINE {
      const Vec<T> v = load(in[i + 1].best + w * L);
      const auto wins = takes_over<kExact>(v, best);
      const Vec<T> its =
          load(in[i + 1].which + w * L) + splat(static_cast<T>(first_tap + 3 * i + 3));
      best = wins ? v : best;
      tap = wins ? its : tap;
      sum += load(in[i + 1].sum + w * L);
    });
    check += sum * T{0};
    const T share = share_of(w);
    store(to.winner + (w + 1) * L, tap);
    store(to.grad_max + (w + 1) * L, from.max_grad(best));
    store(to.grad_mean + (w + 1) * L, from.mean_grad(sum * share) * share);
  }
  for (int e = 0; e < from.edge_count; ++e) add_edge(from.edges[e], from.live, h, share_of, g, to);
  return !any_nan(check);
}

// Output row `h`; input rows below `ready` have been reduced before.
template <bool kExact, class T>
bool pool_gather_pass(const Geometry& g, const PoolSources<T>& from, int h, int& ready,
                      const PoolScratch<T>& scratch) {
  const int center = h * g.stride;
  const int top = center > 0 ? center - 1 : 0;
  const int bottom = center < g.height - 1 ? center + 1 : center;
  for (; ready <= bottom; ++ready) {
    pool_columns<kExact>(g, from.x + ready * g.width * from.pitch, from.pitch, from.live,
                         scratch.input(ready));
  }
  const int rows = bottom - top + 1;
  const int first_tap = (top - center + 1) * 3;
  typename PoolScratch<T>::Input in[3];
  for (int i = 0; i < rows; ++i) in[i] = scratch.input(top + i);
  const auto to = scratch.output(h);
  if (rows == 3) return pool_gather_rows<3, kExact>(g, from, h, first_tap, in, to);
  if (rows == 2) return pool_gather_rows<2, kExact>(g, from, h, first_tap, in, to);
  return pool_gather_rows<1, kExact>(g, from, h, first_tap, in, to);
}

template <class T>
void pool_gather_row(const Geometry& g, const PoolSources<T>& from, int h, int& ready,
                     const PoolScratch<T>& scratch) {
  if (pool_gather_pass<false>(g, from, h, ready, scratch)) return;
  int again = h * g.stride > 0 ? h * g.stride - 1 : 0;
  pool_gather_pass<true>(g, from, h, again, scratch);
}

// Output rows that reach input row `h`.
template <int S>
METADNAS_INLINE inline int first_reached(int h) {
  return S == 1 ? h - 1 : h / 2;
}
template <int S>
METADNAS_INLINE inline int last_reached(int h) {
  return S == 1 ? h + 1 : (h + 1) / 2;
}

// What both pools add to the gradient of input row `h`, into to[w][lane].
template <int S, class T>
void pool_input_grad_row(const Geometry& g, const PoolScratch<T>& scratch, bool has_max,
                         bool has_mean, int h, T* to) {
  constexpr int L = kLanes<T>;
  const int row0 = first_reached<S>(h);
  const int rows = last_reached<S>(h) - row0 + 1;
  typename PoolScratch<T>::Output from[3];
  for (int i = 0; i < rows; ++i) from[i] = scratch.output(row0 + i);
  T* column = scratch.column();
  for (int w = 0; has_mean && w < g.out_width + 2; ++w) {
    Vec<T> total = load(from[0].grad_mean + w * L);
    for (int i = 1; i < rows; ++i) total += load(from[i].grad_mean + w * L);
    store(column + w * L, total);
  }
  // `count` output columns from `first` on reach input column w.
  auto pixel = [&](int w, int first, int count) METADNAS_INLINE {
    Vec<T> total{};
    for (int k = 0; has_mean && k < count; ++k) total += load(column + (first + k + 1) * L);
    for (int i = 0; has_max && i < rows; ++i) {
      const int above = (h + 1 - S * (row0 + i)) * 3 + w + 1 - S * first;
#pragma GCC unroll 3
      for (int k = 0; k < count; ++k) {
        const ptrdiff_t at = (first + k + 1) * L;
        const auto won = load(from[i].winner + at) == splat(static_cast<T>(above - S * k));
        total += won ? load(from[i].grad_max + at) : Vec<T>{};
      }
    }
    store(to + w * L, total);
  };
  if constexpr (S == 1) {
    for (int w = 0; w < g.width; ++w) pixel(w, w - 1, 3);
  } else {
    for (int w = 0; w < g.width; w += 2) pixel(w, w / 2, 1);
    for (int w = 1; w < g.width; w += 2) pixel(w, w / 2, 2);
  }
}

// The same for one input row after the other, from top to bottom: output rows are gathered as soon
// as one of them reaches the row at hand.
template <class T>
struct PoolInputGrad {
  const Geometry& g;
  PoolSources<T> from;
  PoolScratch<T> scratch;
  int reduced = 0;   // input rows
  int gathered = 0;  // output rows

  template <int S>
  void next(int h, T* to) {
    for (; gathered <= last_reached<S>(h) && gathered < g.out_height; ++gathered) {
      pool_gather_row(g, from, gathered, reduced, scratch);
    }
    pool_input_grad_row<S>(g, scratch, from.max_grad.present, from.mean_grad.present, h, to);
  }
};

}  // namespace metadnas::METADNAS_ISA
