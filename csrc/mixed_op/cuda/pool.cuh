// 3x3 max and average pooling (padding 1, padding not counted) of V channels of one output pixel.
#pragma once

#include "mixed_op/cuda/frame.cuh"
#include "mixed_op/cuda/tiles.h"

namespace metadnas::mixed_op {

template <class A, int V>
struct Pooled {
  A largest[V];
  A mean[V];
  int winner[V];  // the tap 0 to 8 that holds the largest, the first in row-major order
  A share;        // 1 / taps
};

// image: the first of the V channels in pixel 0.
template <int V, class S>
__device__ __forceinline__ Pooled<Accumulate<S>, V> pool_pixel(const S* image, int64_t pitch,
                                                               const PoolShape& shape, int row,
                                                               int column) {
  using A = Accumulate<S>;
  Pooled<A, V> to;
  int taps = 0;
  A sum[V] = {};
#pragma unroll
  for (int tap = 0; tap < 9; ++tap) {
    const int h = row * shape.stride + tap / 3 - 1, w = column * shape.stride + tap % 3 - 1;
    if (h < 0 || h >= shape.height || w < 0 || w >= shape.width) continue;
    A v[V];
    load<V>(image + (static_cast<int64_t>(h) * shape.width + w) * pitch, v);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      sum[i] += v[i];
      // As PyTorch decides: later equal values do not take over, a NaN always does.
      if (taps == 0 || v[i] > to.largest[i] || v[i] != v[i]) {
        to.largest[i] = v[i];
        to.winner[i] = tap;
      }
    }
    ++taps;
  }
  to.share = A{1} / static_cast<A>(taps);
#pragma unroll
  for (int i = 0; i < V; ++i) to.mean[i] = sum[i] * to.share;
  return to;
}

}  // namespace metadnas::mixed_op
