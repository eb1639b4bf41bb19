// Order statistics of kLanes columns at once, one column a lane, over the rows of a tile that holds
// no NaN.
#pragma once

#include "aggregate/cpu/sort.h"
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
    Mask<T> count{};
    for (int64_t g = 0; g < clients; ++g) count = count_less<T>(count, row(g), pivot);
    return count;
  }

  // How many are above it, and the smallest of them.
  METADNAS_INLINE std::pair<Mask<T>, Vec<T>> above(Vec<T> bound) const {
    Mask<T> count{};
    Vec<T> least = splat(std::numeric_limits<T>::infinity());
    for (int64_t g = 0; g < clients; ++g) {
      const Vec<T> v = row(g);
      count = count_less<T>(count, bound, v);
      least = (v > bound) & (v < least) ? v : least;
    }
    return {count, least};
  }

  // The smallest value of at least `bound`, and the next one, which may equal it.
  METADNAS_INLINE std::pair<Vec<T>, Vec<T>> least_two_from(Vec<T> bound) const {
    const Vec<T> infinity = splat(std::numeric_limits<T>::infinity());
    Vec<T> first = infinity;
    Vec<T> second = infinity;
    for (int64_t g = 0; g < clients; ++g) {
      const Vec<T> v = row(g) >= bound ? row(g) : infinity;
      const Vec<T> larger = v > first ? v : first;
      first = v < first ? v : first;
      second = larger < second ? larger : second;
    }
    return {first, second};
  }
};

// What is known of the value of a rank in each column: it lies in [low, high).
template <class T>
struct Bracket {
  Mask<T> wanted;  // the rank, from 0
  Vec<T> low;
  Mask<T> low_key;
  Mask<T> high_key;
  Mask<T> below_low;  // values below the ends
  Mask<T> below_high;

  Bracket(int64_t rank, int64_t clients, Vec<T> least, Vec<T> most)
      : wanted(Mask<T>{} + static_cast<MaskLane<T>>(rank)),
        low(least),
        low_key(key_of<T>(least)),
        high_key(key_of<T>(most) + 1),
        below_low{},
        below_high(Mask<T>{} + static_cast<MaskLane<T>>(clients)) {}

  METADNAS_INLINE Mask<T> values() const { return below_high - below_low; }

  // Lanes where the value is neither one of the two smallest in the bracket nor its only float.
  METADNAS_INLINE Mask<T> open() const {
    return (wanted - below_low > 1) & (low_key < high_key - 1);
  }

  METADNAS_INLINE Mask<T> inside(Mask<T> key) const {
    key = key > low_key ? key : low_key + 1;
    return key < high_key ? key : high_key - 1;
  }

  // `below` values are below the float of `key`.
  METADNAS_INLINE void learn(Mask<T> key, Mask<T> below) {
    const Mask<T> raise = (below <= wanted) & (key > low_key);
    const Mask<T> lower = (below > wanted) & (key < high_key);
    low_key = raise ? key : low_key;
    below_low = raise ? below : below_low;
    high_key = lower ? key : high_key;
    below_high = lower ? below : below_high;
    low = value_of<T>(low_key);
  }

  // One pass over the tile for two pivots.
  METADNAS_INLINE void split(const Tile<T>& tile, Mask<T> first_key, Mask<T> second_key) {
    first_key = inside(first_key);
    second_key = inside(second_key);
    const Vec<T> first = value_of<T>(first_key);
    const Vec<T> second = value_of<T>(second_key);
    Mask<T> below_first{}, below_second{};
    for (int64_t g = 0; g < tile.clients; ++g) {
      const Vec<T> v = tile.row(g);
      below_first = count_less<T>(below_first, v, first);
      below_second = count_less<T>(below_second, v, second);
    }
    learn(first_key, below_first);
    learn(second_key, below_second);
  }

  // Moves low up to the smallest value in the bracket.
  METADNAS_INLINE void climb(const Tile<T>& tile) {
    const Mask<T> key = key_of<T>(tile.least_two_from(low).first);
    low_key = key > low_key ? key : low_key;  // not from +0 back to -0
    low = value_of<T>(low_key);
  }
};

inline constexpr int64_t kSample = 64;        // clients whose order starts the search,
inline constexpr int64_t kSampleMargin = 10;  // +- 2.5 standard deviations of a median's rank
inline constexpr int kPatience = 3;           // steps that may keep more than half of the bracket

// Splits the bracket at values of a sorted sample of the clients, around the wanted rank.
template <class T>
METADNAS_INLINE inline void start_from_sample(const Tile<T>& tile, int64_t rank,
                                              Bracket<T>& bracket) {
  alignas(64) T sample[kSample * kLanes<T>];
  for (int64_t i = 0; i < kSample; ++i) {
    store(sample + i * kLanes<T>, tile.row(i * tile.clients / kSample));
  }
  sort_columns(sample, kSample);
  const int64_t middle = rank * kSample / tile.clients;
  const int64_t first = middle < kSampleMargin ? 0 : middle - kSampleMargin;
  const int64_t last = middle + kSampleMargin < kSample ? middle + kSampleMargin : kSample - 1;
  bracket.split(tile, key_of<T>(load(sample + first * kLanes<T>)),
                key_of<T>(load(sample + last * kLanes<T>)));
}

// The value of rank `rank` (from 0) in every column; least and most are the columns' extremes.
//
// A bracket around it shrinks by counting the values below two pivots, placed on either side of
// where it would be if the bracket's values were uniform. A lane that is still stuck after a few
// such steps (outliers, ties) splits off the smallest value with its copies and halves the floats
// of the bracket instead, which bounds the steps for any data.
template <class T>
Vec<T> select_rank(const Tile<T>& tile, int64_t rank, Vec<T> least, Vec<T> most) {
  Bracket<T> bracket(rank, tile.clients, least, most);
  if (tile.clients >= 4 * kSample) start_from_sample(tile, rank, bracket);
  Mask<T> stuck{};  // steps in a row that kept more than half of the values
  while (any<T>(bracket.open())) {
    const Mask<T> before = bracket.values();
    if (any<T>(bracket.open() & (stuck >= kPatience))) bracket.climb(tile);
    const Vec<T> high = value_of<T>(bracket.high_key);  // NaN behind +inf: then not usable
    const Vec<T> width = high - bracket.low;
    const Vec<T> count = __builtin_convertvector(before, Vec<T>);
    const Vec<T> at = __builtin_convertvector(bracket.wanted - bracket.below_low, Vec<T>) + T{0.5};
    const Vec<T> aside = count / 16 + T{0.5};  // values; a few more than are missed by chance
    const Vec<T> left = bracket.low + width * ((at - aside) / count);
    const Vec<T> right = bracket.low + width * ((at + aside) / count);
    const Mask<T> usable =
        (left - left == Vec<T>{}) & (right - right == Vec<T>{}) & (stuck < kPatience);
    const Mask<T> middle =
        (bracket.low_key & bracket.high_key) + ((bracket.low_key ^ bracket.high_key) >> 1);
    bracket.split(tile, usable ? key_of<T>(left) : bracket.low_key + 1,
                  usable ? key_of<T>(right) : middle);
    const Mask<T> slow = 2 * bracket.values() > before;
    stuck = slow ? stuck + 1 : Mask<T>{};
  }
  const auto [first, second] = tile.least_two_from(bracket.low);
  return bracket.wanted - bracket.below_low == 1 ? second : first;
}

}  // namespace metadnas::METADNAS_ISA
