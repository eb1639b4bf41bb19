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

// Per output pixel of one channel block, with a border of one pixel.
template <class T>
struct PoolScratch {
  T* winner;  // tap that holds the maximum, 0..8, as a number of T; -1 on the border
  T* grad_max;
  T* grad_mean;
  T* rows;  // three rows of [best, column, sum], by input row modulo 3
  T* column;
  int pitch;  // pixels in a row

  static int64_t plane(const Geometry& g) {
    return int64_t{g.out_height + 2} * (g.out_width + 2) * kLanes<T>;
  }
  static int64_t size(const Geometry& g) {
    return 3 * plane(g) + int64_t{10} * (g.out_width + 2) * kLanes<T>;
  }
  PoolScratch(const Geometry& g, T* memory)
      : winner(memory),
        grad_max(winner + plane(g)),
        grad_mean(grad_max + plane(g)),
        rows(grad_mean + plane(g)),
        column(rows + 9 * (g.out_width + 2) * kLanes<T>),
        pitch(g.out_width + 2) {}

  ptrdiff_t at(int h, int w) const {
    return (static_cast<ptrdiff_t>(h + 1) * pitch + (w + 1)) * kLanes<T>;
  }
  T* best(int row) const { return rows + static_cast<ptrdiff_t>(row % 3) * 3 * pitch * kLanes<T>; }
  T* which(int row) const { return best(row) + pitch * kLanes<T>; }
  T* sum(int row) const { return best(row) + 2 * pitch * kLanes<T>; }

  void clear_border(const Geometry& g) const {
    auto clear = [&](int h, int w) {
      store(winner + at(h, w), splat(T{-1}));
      store(grad_mean + at(h, w), Vec<T>{});
    };
    for (int w = -1; w <= g.out_width; ++w) {
      clear(-1, w);
      clear(g.out_height, w);
    }
    for (int h = 0; h < g.out_height; ++h) {
      clear(h, -1);
      clear(h, g.out_width);
    }
  }
};

// Whether v takes the place of the best so far, as PyTorch decides: later equal values do not, a
// NaN always does.
template <class V>
METADNAS_INLINE inline auto takes_over(V v, V best) {
  return (v > best) | (v != v);
}

// Maximum, its column (0..2) and the sum of the up to three columns around each output column.
template <class T>
void pool_columns(const Geometry& g, const T* line, ptrdiff_t pitch, int live, T* best, T* which,
                  T* sum) {
  constexpr int L = kLanes<T>;
  auto reduce = [&](int w, int first, int last, int lanes) METADNAS_INLINE {
    const T* middle = line + w * g.stride * pitch;
    Vec<T> b = load_first(middle + first * pitch, lanes);
    Vec<T> c = splat(static_cast<T>(first + 1));
    Vec<T> s = b;
    for (int d = first + 1; d <= last; ++d) {
      const Vec<T> v = load_first(middle + d * pitch, lanes);
      const auto wins = takes_over(v, b);
      b = wins ? v : b;
      c = wins ? splat(static_cast<T>(d + 1)) : c;
      s += v;
    }
    store(best + w * L, b);
    store(which + w * L, c);
    store(sum + w * L, s);
  };
  const int whole = (g.width - 2) / g.stride;  // last output column with all three
  auto inner = [&](int lanes) METADNAS_INLINE {
    for (int w = 1; w <= whole; ++w) reduce(w, -1, 1, lanes);
  };
  reduce(0, 0, g.width > 1 ? 1 : 0, live);
  live == L ? inner(L) : inner(live);
  for (int w = whole < 1 ? 1 : whole + 1; w < g.out_width; ++w) reduce(w, -1, 0, live);
}

// Fills `to` for one channel block: winners, and the gradients that reach each pooled value.
template <class T>
void pool_gather(const Geometry& g, const T* x, ptrdiff_t pitch, int live,
                 const PoolGradient<T>& max_grad, const PoolGradient<T>& mean_grad,
                 const PoolEdge<T>* edges, int edge_count, const PoolScratch<T>& to) {
  constexpr int L = kLanes<T>;
  int ready = 0;  // input rows reduced so far
  for (int h = 0; h < g.out_height; ++h) {
    const int center = h * g.stride;
    const int top = center > 0 ? center - 1 : 0;
    const int bottom = center < g.height - 1 ? center + 1 : center;
    for (; ready <= bottom; ++ready) {
      pool_columns(g, x + ready * g.width * pitch, pitch, live, to.best(ready), to.which(ready),
                   to.sum(ready));
    }
    const int rows = bottom - top + 1;
    T* winner = to.winner + to.at(h, 0);
    T* grad_max = to.grad_max + to.at(h, 0);
    T* grad_mean = to.grad_mean + to.at(h, 0);
    for (int w = 0; w < g.out_width; ++w) {
      Vec<T> best = load(to.best(top) + w * L);
      Vec<T> tap = load(to.which(top) + w * L) + splat(static_cast<T>((top - center + 1) * 3));
      Vec<T> sum = load(to.sum(top) + w * L);
      for (int row = top + 1; row <= bottom; ++row) {
        const Vec<T> v = load(to.best(row) + w * L);
        const auto wins = takes_over(v, best);
        best = wins ? v : best;
        tap = wins ? load(to.which(row) + w * L) + splat(static_cast<T>((row - center + 1) * 3))
                   : tap;
        sum += load(to.sum(row) + w * L);
      }
      const T share = T{1} / static_cast<T>(rows * pool_taps(w * g.stride, g.width));
      Vec<T> a = max_grad(best);
      Vec<T> b = mean_grad(sum * share);
      for (int e = 0; e < edge_count; ++e) {
        const PoolEdge<T>& edge = edges[e];
        const Vec<T> grad = load_first(edge.grad + (h * g.out_width + w) * edge.pitch, live);
        a += edge.max_scale * grad;
        b += edge.mean_scale * grad;
      }
      store(winner + w * L, tap);
      store(grad_max + w * L, a);
      store(grad_mean + w * L, b * share);
    }
  }
}

// What both pools add to the gradient of input row `h`, into to[w][lane].
template <int S, class T>
void pool_input_grad_row(const Geometry& g, const PoolScratch<T>& from, bool has_max, bool has_mean,
                         int h, T* to) {
  constexpr int L = kLanes<T>;
  const int row0 = S == 1 ? h - 1 : h / 2;
  const int row1 = S == 1 ? h + 1 : (h + 1) / 2;
  for (int w = -1; has_mean && w <= g.out_width; ++w) {
    Vec<T> total = load(from.grad_mean + from.at(row0, w));
    for (int row = row0 + 1; row <= row1; ++row) total += load(from.grad_mean + from.at(row, w));
    store(from.column + (w + 1) * L, total);
  }
  for (int w = 0; w < g.width; ++w) {
    const int first = S == 1 ? w - 1 : w / 2;
    const int last = S == 1 ? w + 1 : (w + 1) / 2;
    Vec<T> total{};
    if (has_mean) {
#pragma GCC unroll 3
      for (int i = first; i <= last; ++i) total += load(from.column + (i + 1) * L);
    }
    if (has_max) {
      for (int row = row0; row <= row1; ++row) {
#pragma GCC unroll 3
        for (int i = first; i <= last; ++i) {
          const ptrdiff_t at = from.at(row, i);
          const T tap = static_cast<T>((h + 1 - S * row) * 3 + w + 1 - S * i);
          const auto won = load(from.winner + at) == splat(tap);
          total += won ? load(from.grad_max + at) : Vec<T>{};
        }
      }
    }
    store(to + w * L, total);
  }
}

}  // namespace metadnas::METADNAS_ISA
