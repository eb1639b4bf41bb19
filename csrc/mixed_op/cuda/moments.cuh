// Mean and M2 (sum of squared deviations) of each channel of a tile.
#pragma once

#include "common/cuda/reduce.cuh"
#include "mixed_op/cuda/tiles.cuh"

namespace metadnas::mixed_op {

using cuda::warp_sum;

// values[channel][pixel] in shared memory. to: means in global memory, and `stride` behind them M2.
// A warp takes a channel, its lanes pixels of the same columns. Two passes, so that no digits are
// lost where the mean is large.
template <class A>
__device__ __forceinline__ void tile_moments(const Tiles& tiles, const TileAt& at, const A* values,
                                             int pitch, int channels, A* to, int stride) {
  constexpr int kEach = kMostPixels / kWarp;
  static_assert(kWarp % (2 * kStrip) == 0, "as wide as a tile, or some of its rows");
  const bool inside = lane() % tiles.width < at.columns();
  const int end = inside ? at.rows() * tiles.width : 0;
  const A share = A{1} / static_cast<A>(at.rows() * at.columns());
  for (int c = warp(); c < channels; c += kThreads / kWarp) {
    const A* const own = values + c * pitch + lane();
    A value[kEach], sum{0};
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      value[i] = lane() + i * kWarp < end ? own[i * kWarp] : A{0};
      sum += value[i];
    }
    const A mean = warp_sum(sum) * share;
    A squares{0};
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const A d = value[i] - mean;
      if (lane() + i * kWarp < end) squares += d * d;
    }
    squares = warp_sum(squares);
    if (lane() == 0) {
      to[c] = mean;
      to[stride + c] = squares;
    }
  }
}

}  // namespace metadnas::mixed_op
