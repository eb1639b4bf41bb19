// 3x3 max and average pooling (padding 1, padding not counted), stride 1 or 2.
#pragma once

#include "mixed_op/cpu/scratch.h"

namespace metadnas::METADNAS_ISA {

// One pooled row: out_width vectors each.
template <class T>
struct PoolRow {
  T* max;
  T* mean;

  static int64_t size(const Geometry& g) { return int64_t{2} * g.out_width * kLanes<T>; }
  PoolRow(const Geometry& g, T* memory) : max(memory), mean(memory + g.out_width * kLanes<T>) {}
};

inline int pool_taps(int center, int size) { return 1 + (center > 0) + (center < size - 1); }

// 1 / taps of an output pixel, for a row with `rows` lines of taps.
template <class T>
struct PoolShare {
  T inner;
  T first;
  T last;
  int last_column;

  PoolShare(const Geometry& g, int rows)
      : inner(share(rows * 3)),
        first(share(rows * pool_taps(0, g.width))),
        last(share(rows * pool_taps((g.out_width - 1) * g.stride, g.width))),
        last_column(g.out_width - 1) {}

  T operator()(int w) const { return w == 0 ? first : w == last_column ? last : inner; }

 private:
  static T share(int taps) { return T{1} / static_cast<T>(taps); }
};

// The lines that a pooling row reads.
template <class T>
struct PoolLines {
  const T* above;
  const T* middle;
  const T* below;
  ptrdiff_t pitch;
};

template <class T>
struct PoolColumn {
  Vec<T> max;
  Vec<T> sum;
};

// kExact: with NaN, which `larger` may lose.
template <bool kExact, class T>
METADNAS_INLINE inline Vec<T> pool_larger(Vec<T> a, Vec<T> b) {
  if constexpr (kExact) {
    return max_nan(a, b);
  } else {
    return larger<T>(a, b);
  }
}

template <bool kExact, bool kAbove, bool kBelow, class T>
METADNAS_INLINE inline PoolColumn<T> pool_column(const PoolLines<T>& lines, int lanes, int w) {
  const ptrdiff_t at = w * lines.pitch;
  const Vec<T> middle = load_first(lines.middle + at, lanes);
  PoolColumn<T> column{middle, middle};
  if constexpr (kAbove) {
    const Vec<T> above = load_first(lines.above + at, lanes);
    column = {pool_larger<kExact, T>(above, column.max), column.sum + above};
  }
  if constexpr (kBelow) {
    const Vec<T> below = load_first(lines.below + at, lanes);
    column = {pool_larger<kExact, T>(column.max, below), column.sum + below};
  }
  return column;
}

// Both pools along a row, columns kept in registers. Returns whether every sum is finite: if not,
// only the exact variant is right.
template <int S, bool kExact, bool kAbove, bool kBelow, class T>
bool pool_row_pass(const Geometry& g, const PoolLines<T>& lines, int lanes, const PoolRow<T>& row) {
  constexpr int L = kLanes<T>;
  const PoolShare<T> share(g, 1 + kAbove + kBelow);
  PoolColumn<T> left = pool_column<kExact, kAbove, kBelow>(lines, lanes, 0);
  PoolColumn<T> middle = left;
  left.sum = Vec<T>{};
  Vec<T> check{};  // NaN as soon as a sum is not finite
  auto write = [&](int w, const PoolColumn<T>& right) METADNAS_INLINE {
    if (S == 1 || w % S == 0) {
      const ptrdiff_t at = w / S * L;
      const Vec<T> sum = left.sum + middle.sum + right.sum;
      store(row.max + at,
            pool_larger<kExact, T>(pool_larger<kExact, T>(left.max, middle.max), right.max));
      store(row.mean + at, sum * share(w / S));
      check += sum * T{0};
    }
    left = middle;
    middle = right;
  };
  for (int w = 0; w + 1 < g.width; ++w) {
    write(w, pool_column<kExact, kAbove, kBelow>(lines, lanes, w + 1));
  }
  write(g.width - 1, {middle.max, Vec<T>{}});
  return !any_nan(check);
}

// One output row of both pools of a channels-last image. `x` points at the channel block of pixel
// 0, pixels are `pitch` apart.
template <class T>
void pool_row(const Geometry& g, const T* x, ptrdiff_t pitch, int live, int out_row,
              const PoolRow<T>& row) {
  const int center = out_row * g.stride;
  const ptrdiff_t line = g.width * pitch;
  const T* middle = x + center * line;
  const PoolLines<T> lines{middle - line, middle, middle + line, pitch};
  auto with_stride = [&]<int S, bool kAbove, bool kBelow>() {
    const bool finite = live == kLanes<T>
                            ? pool_row_pass<S, false, kAbove, kBelow>(g, lines, kLanes<T>, row)
                            : pool_row_pass<S, false, kAbove, kBelow>(g, lines, live, row);
    if (!finite) pool_row_pass<S, true, kAbove, kBelow>(g, lines, live, row);
  };
  auto with_edges = [&]<bool kAbove, bool kBelow>() {
    g.stride == 1 ? with_stride.template operator()<1, kAbove, kBelow>()
                  : with_stride.template operator()<2, kAbove, kBelow>();
  };
  const bool above = center > 0, below = center < g.height - 1;
  if (above && below) return with_edges.template operator()<true, true>();
  if (above) return with_edges.template operator()<true, false>();
  if (below) return with_edges.template operator()<false, true>();
  with_edges.template operator()<false, false>();
}

}  // namespace metadnas::METADNAS_ISA
