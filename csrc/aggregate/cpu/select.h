// Order statistics of kLanes columns at once, one column a lane, over the rows of a tile that holds
// no NaN.
#pragma once

#include "aggregate/cpu/vectors.h"

namespace metadnas::METADNAS_ISA {

// Floats as integers of the same order, so that a bracket of floats can be halved exactly.
template <class T>
METADNAS_INLINE inline Mask<T> key_of(Vec<T> v) {
  const Mask<T> bits = (Mask<T>)v;
  return bits ^ ((bits >> (8 * sizeof(T) - 1)) & std::numeric_limits<MaskLane<T>>::max());
}

template <class T>
METADNAS_INLINE inline Vec<T> value_of(Mask<T> key) {
  return (Vec<T>)(key ^ ((key >> (8 * sizeof(T) - 1)) & std::numeric_limits<MaskLane<T>>::max()));
}

template <class T>
struct Tile {
  const T* rows;    // (G, kLanes)
  int64_t clients;  // G

  METADNAS_INLINE Vec<T> row(int64_t g) const { return load(rows + g * kLanes<T>); }

  // How many of a column's values are below `pivot`.
  METADNAS_INLINE Mask<T> count_below(Vec<T> pivot) const {
    Mask<T> even{}, odd{};  // two chains of additions
    int64_t g = 0;
    for (; g + 2 <= clients; g += 2) {
      even = count_less<T>(even, row(g), pivot);
      odd = count_less<T>(odd, row(g + 1), pivot);
    }
    if (g < clients) even = count_less<T>(even, row(g), pivot);
    return even + odd;
  }

  // How many are above it.
  METADNAS_INLINE Mask<T> count_above(Vec<T> pivot) const {
    Mask<T> count{};
    for (int64_t g = 0; g < clients; ++g) count = count_less<T>(count, pivot, row(g));
    return count;
  }

  // The smallest value of at least `bound`, and of more than it.
  METADNAS_INLINE Vec<T> least_from(Vec<T> bound) const {
    Vec<T> least = splat(std::numeric_limits<T>::infinity());
    for (int64_t g = 0; g < clients; ++g) {
      const Vec<T> v = row(g);
      least = (v >= bound) & (v < least) ? v : least;
    }
    return least;
  }
  METADNAS_INLINE Vec<T> least_above(Vec<T> bound) const {
    Vec<T> least = splat(std::numeric_limits<T>::infinity());
    for (int64_t g = 0; g < clients; ++g) {
      const Vec<T> v = row(g);
      least = (v > bound) & (v < least) ? v : least;
    }
    return least;
  }
};

// The value of rank `rank` (from 0) in every column; least and most are the columns' extremes.
//
// A bracket [low, high) around it shrinks by counting the values below a pivot, and holds when no
// value of lower rank is left in it or it is one float wide. Pivots are interpolated between the
// bracket's ends as if values were uniform there; a lane whose last step kept more than half of the
// bracket's values halves the bracket's floats instead, which bounds the steps for any data.
template <class T>
Vec<T> select_rank(const Tile<T>& tile, int64_t rank, Vec<T> least, Vec<T> most) {
  using Count = MaskLane<T>;
  const Mask<T> wanted = Mask<T>{} + static_cast<Count>(rank);
  Vec<T> low = least;
  Mask<T> low_key = key_of<T>(low);
  Mask<T> high_key = key_of<T>(most) + 1;
  Mask<T> below_low{};
  Mask<T> below_high = below_low + static_cast<Count>(tile.clients);
  Mask<T> stalled{};
  while (any<T>((below_low != wanted) & (low_key < high_key - 1))) {
    const Vec<T> high = value_of<T>(high_key);  // NaN behind +inf, whose pivot is then the middle
    const Vec<T> part = __builtin_convertvector(wanted - below_low, Vec<T>) + T{0.5};
    const Vec<T> whole = __builtin_convertvector(below_high - below_low, Vec<T>);
    const Vec<T> guess = low + (high - low) * (part / whole);
    const Mask<T> middle = (low_key & high_key) + ((low_key ^ high_key) >> 1);
    const Mask<T> usable = (guess - guess == Vec<T>{}) & ~stalled;
    Mask<T> pivot_key = usable ? key_of<T>(guess) : middle;
    pivot_key = pivot_key > low_key ? pivot_key : low_key + 1;
    pivot_key = pivot_key < high_key ? pivot_key : high_key - 1;
    const Vec<T> pivot = value_of<T>(pivot_key);
    const Mask<T> below = tile.count_below(pivot);
    const Mask<T> raise = below <= wanted;
    const Mask<T> before = below_high - below_low;
    low = raise ? pivot : low;
    low_key = raise ? pivot_key : low_key;
    below_low = raise ? below : below_low;
    high_key = raise ? high_key : pivot_key;
    below_high = raise ? below_high : below;
    stalled = 2 * (below_high - below_low) > before;
  }
  return tile.least_from(low);
}

}  // namespace metadnas::METADNAS_ISA
