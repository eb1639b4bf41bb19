// 3x3 max and average pooling (padding 1, padding not counted), stride 1 or 2.
#pragma once

#include "mixed_op/cpu/scratch.h"

namespace metadnas::METADNAS_ISA {

// Buffers for one pooled row: `max` and `mean` hold out_width vectors, `column` width + 2.
template <class T>
struct PoolRow {
  T* max;
  T* mean;
  T* column_max;
  T* column_sum;

  static int64_t size(const Geometry& g) {
    return int64_t{2} * (g.out_width + g.width + 2) * kLanes<T>;
  }
  PoolRow(const Geometry& g, T* memory)
      : max(memory),
        mean(max + g.out_width * kLanes<T>),
        column_max(mean + g.out_width * kLanes<T>),
        column_sum(column_max + (g.width + 2) * kLanes<T>) {}
};

inline int pool_taps(int center, int size) { return 1 + (center > 0) + (center < size - 1); }

// One output row of both pools of a channels-last image. `x` points at the channel block of pixel
// 0.
template <class T>
void pool_row(const Geometry& g, const T* x, int live, int out_row, const PoolRow<T>& row) {
  constexpr int L = kLanes<T>;
  const int center = out_row * g.stride;
  const ptrdiff_t pitch = static_cast<ptrdiff_t>(g.width) * g.channels;
  const T* middle = x + center * pitch;
  const bool above = center > 0;
  const bool below = center < g.height - 1;
  for (int w = 0; w < g.width; ++w) {
    const T* p = middle + static_cast<ptrdiff_t>(w) * g.channels;
    Vec<T> largest = load_first(p, live);
    Vec<T> sum = largest;
    if (above) {
      const Vec<T> v = load_first(p - pitch, live);
      largest = max_nan(v, largest);
      sum += v;
    }
    if (below) {
      const Vec<T> v = load_first(p + pitch, live);
      largest = max_nan(largest, v);
      sum += v;
    }
    store(row.column_max + (w + 1) * L, largest);
    store(row.column_sum + (w + 1) * L, sum);
  }
  // Beyond the edge: repeat the border for the maximum, add nothing to the sum.
  store(row.column_max, load(row.column_max + L));
  store(row.column_max + (g.width + 1) * L, load(row.column_max + g.width * L));
  store(row.column_sum, Vec<T>{});
  store(row.column_sum + (g.width + 1) * L, Vec<T>{});
  const int rows = pool_taps(center, g.height);
  for (int w = 0; w < g.out_width; ++w) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(w) * g.stride * L;
    const Vec<T> largest =
        max_nan(max_nan(load(row.column_max + at), load(row.column_max + at + L)),
                load(row.column_max + at + 2 * L));
    const Vec<T> sum = load(row.column_sum + at) + load(row.column_sum + at + L) +
                       load(row.column_sum + at + 2 * L);
    store(row.max + w * L, largest);
    store(row.mean + w * L, sum * (T{1} / static_cast<T>(rows * pool_taps(w * g.stride, g.width))));
  }
}

// A linear map of the pooled value and the output gradient: scale * g + slope * (v - mean) + shift.
template <class T>
struct PoolGradient {
  bool present = false;
  Vec<T> scale{};
  Vec<T> slope{};
  Vec<T> mean{};
  Vec<T> shift{};

  METADNAS_INLINE Vec<T> operator()(Vec<T> grad, Vec<T> value) const {
    return scale * grad + slope * (value - mean) + shift;
  }
};

// Scratch of the backward pass of both pools: per output pixel, with a border of one pixel.
template <class T>
struct PoolBackward {
  T* winner;  // tap that holds the maximum, 0..8, as a number of T; -1 on the border
  T* grad_max;
  T* grad_mean;
  int pitch;  // pixels in a row

  static int64_t plane(const Geometry& g) {
    return int64_t{g.out_height + 2} * (g.out_width + 2) * kLanes<T>;
  }
  static int64_t size(const Geometry& g) { return 3 * plane(g); }
  PoolBackward(const Geometry& g, T* memory)
      : winner(memory),
        grad_max(winner + plane(g)),
        grad_mean(grad_max + plane(g)),
        pitch(g.out_width + 2) {}

  ptrdiff_t at(int h, int w) const {
    return (static_cast<ptrdiff_t>(h + 1) * pitch + (w + 1)) * kLanes<T>;
  }
};

// Fills `to` for one channel block: winners and the gradients that reach each pooled value.
template <class T>
void pool_backward_gather(const Geometry& g, const T* x, const T* grad_out, int live,
                          const PoolGradient<T>& max_grad, const PoolGradient<T>& mean_grad,
                          const PoolBackward<T>& to) {
  for (int w = 0; w < g.out_width + 2; ++w) {
    for (const int h : {-1, g.out_height}) {
      store(to.winner + to.at(h, w - 1), splat(T{-1}));
      store(to.grad_mean + to.at(h, w - 1), Vec<T>{});
    }
  }
  for (int h = 0; h < g.out_height; ++h) {
    for (const int w : {-1, g.out_width}) {
      store(to.winner + to.at(h, w), splat(T{-1}));
      store(to.grad_mean + to.at(h, w), Vec<T>{});
    }
    const int ch = h * g.stride;
    for (int w = 0; w < g.out_width; ++w) {
      const int cw = w * g.stride;
      const T* p = x + (static_cast<ptrdiff_t>(ch) * g.width + cw) * g.channels;
      Vec<T> best = splat(-static_cast<T>(__builtin_inf()));
      Vec<T> winner = splat(T{-1});
      Vec<T> sum{};
      // Row-major order with a strict comparison: the first of equal values wins, a NaN always.
      for (int dh = ch > 0 ? -1 : 0; dh <= (ch < g.height - 1 ? 1 : 0); ++dh) {
        for (int dw = cw > 0 ? -1 : 0; dw <= (cw < g.width - 1 ? 1 : 0); ++dw) {
          const Vec<T> v =
              load_first(p + (static_cast<ptrdiff_t>(dh) * g.width + dw) * g.channels, live);
          const Vec<T> tap = splat(static_cast<T>((dh + 1) * 3 + dw + 1));
          const auto better = (v > best) | (v != v) | (winner < Vec<T>{});
          best = better ? v : best;
          winner = better ? tap : winner;
          sum += v;
        }
      }
      const Vec<T> grad =
          load_first(grad_out + (static_cast<ptrdiff_t>(h) * g.out_width + w) * g.channels, live);
      const T share = T{1} / static_cast<T>(pool_taps(ch, g.height) * pool_taps(cw, g.width));
      store(to.winner + to.at(h, w), winner);
      if (max_grad.present) store(to.grad_max + to.at(h, w), max_grad(grad, best));
      if (mean_grad.present)
        store(to.grad_mean + to.at(h, w), mean_grad(grad, sum * share) * share);
    }
  }
}

// What both pools add to the gradient of input pixel (h, w).
template <class T>
METADNAS_INLINE inline Vec<T> pool_backward_at(const Geometry& g, const PoolBackward<T>& from,
                                               bool has_max, bool has_mean, int h, int w) {
  Vec<T> total{};
  for (int kh = 0; kh < 3; ++kh) {
    const int oh = h + 1 - kh;
    if (g.stride == 2 && (oh & 1)) continue;
    for (int kw = 0; kw < 3; ++kw) {
      const int ow = w + 1 - kw;
      if (g.stride == 2 && (ow & 1)) continue;
      const ptrdiff_t at = g.stride == 2 ? from.at(oh >> 1, ow >> 1) : from.at(oh, ow);
      if (has_max) {
        const auto won = load(from.winner + at) == splat(static_cast<T>(kh * 3 + kw));
        total += won ? load(from.grad_max + at) : Vec<T>{};
      }
      if (has_mean) total += load(from.grad_mean + at);
    }
  }
  return total;
}

}  // namespace metadnas::METADNAS_ISA
