// A value of a given rank among many: bisection on keys, integers in the order of the values, whose
// bracket shrinks to keys that occur.
#pragma once

#include "common/cuda/runtime.h"

namespace metadnas::aggregate_cuda {

template <class T>
struct Keys;

template <>
struct Keys<float> {
  using Key = int32_t;
  static constexpr Key kLargest = 0x7fffffff;
  static __device__ __forceinline__ Key of(float v) { return flip(__float_as_int(v)); }
  static __device__ __forceinline__ float value(Key key) { return __int_as_float(flip(key)); }
  static __device__ __forceinline__ Key flip(Key bits) { return bits ^ (bits >> 31 & kLargest); }
};

template <>
struct Keys<double> {
  using Key = long long;
  static constexpr Key kLargest = 0x7fffffffffffffffll;
  static __device__ __forceinline__ Key of(double v) { return flip(__double_as_longlong(v)); }
  static __device__ __forceinline__ double value(Key key) {
    return __longlong_as_double(flip(key));
  }
  static __device__ __forceinline__ Key flip(Key bits) { return bits ^ (bits >> 63 & kLargest); }
};

// How many keys are at most `pivot`, and the keys on either side of it.
template <class Key>
struct Split {
  int64_t below = 0;
  Key last;  // largest of those; only if there are any
  Key next;  // smallest of the others; likewise
};

// keys(g) for g in [0, count).
template <class Key, class Source>
__device__ __forceinline__ Split<Key> split_at(const Source& keys, int64_t count, Key pivot,
                                               Key least, Key most) {
  Split<Key> split{0, least, most};
#pragma unroll 4
  for (int64_t g = 0; g < count; ++g) {
    const Key key = keys(g);
    if (key <= pivot) {
      ++split.below;
      split.last = max(split.last, key);
    } else {
      split.next = min(split.next, key);
    }
  }
  return split;
}

// least, most: the smallest and largest key.
template <class Key, class Source>
__device__ Key select_rank(const Source& keys, int64_t count, int64_t rank, Key least, Key most) {
  Key low = least, high = most;
  while (low < high) {
    const Key middle = (low & high) + ((low ^ high) >> 1);  // rounded down, without overflow
    const Split<Key> split = split_at(keys, count, middle, least, most);
    if (split.below > rank) {
      high = split.last;
    } else {
      low = split.next;
    }
  }
  return low;
}

}  // namespace metadnas::aggregate_cuda
