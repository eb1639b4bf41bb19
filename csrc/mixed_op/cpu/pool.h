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
// 0, pixels are `pitch` apart.
template <class T>
void pool_row(const Geometry& g, const T* x, ptrdiff_t pitch, int live, int out_row,
              const PoolRow<T>& row) {
  constexpr int L = kLanes<T>;
  const int center = out_row * g.stride;
  const ptrdiff_t line = g.width * pitch;
  const T* middle = x + center * line;
  // Beyond the edge: the middle row again, which changes no maximum, and is not added to the sum.
  const T* above = center > 0 ? middle - line : middle;
  const T* below = center < g.height - 1 ? middle + line : middle;
  const bool has_above = center > 0, has_below = center < g.height - 1;
  auto columns = [&](int lanes) METADNAS_INLINE {
    for (int w = 0; w < g.width; ++w) {
      const Vec<T> a = load_first(above + w * pitch, lanes);
      const Vec<T> b = load_first(middle + w * pitch, lanes);
      const Vec<T> c = load_first(below + w * pitch, lanes);
      store(row.column_max + (w + 1) * L, max_nan(max_nan(a, b), c));
      Vec<T> sum = b;
      if (has_above) sum += a;
      if (has_below) sum += c;
      store(row.column_sum + (w + 1) * L, sum);
    }
  };
  live == L ? columns(L) : columns(live);
  store(row.column_max, load(row.column_max + L));
  store(row.column_max + (g.width + 1) * L, load(row.column_max + g.width * L));
  store(row.column_sum, Vec<T>{});
  store(row.column_sum + (g.width + 1) * L, Vec<T>{});
  const int rows = pool_taps(center, g.height);
  const T inner = T{1} / static_cast<T>(rows * 3);
  for (int w = 0; w < g.out_width; ++w) {
    const ptrdiff_t at = static_cast<ptrdiff_t>(w) * g.stride * L;
    const Vec<T> largest =
        max_nan(max_nan(load(row.column_max + at), load(row.column_max + at + L)),
                load(row.column_max + at + 2 * L));
    const Vec<T> sum = load(row.column_sum + at) + load(row.column_sum + at + L) +
                       load(row.column_sum + at + 2 * L);
    const int taps = pool_taps(w * g.stride, g.width);
    store(row.max + w * L, largest);
    store(row.mean + w * L, sum * (taps == 3 ? inner : T{1} / static_cast<T>(rows * taps)));
  }
}

}  // namespace metadnas::METADNAS_ISA
