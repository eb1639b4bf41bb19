// Mean and M2 (sum of squared deviations) of each channel of a tile.
#pragma once

#include "common/cuda/reduce.cuh"
#include "mixed_op/cuda/tiles.cuh"

namespace metadnas::mixed_op {

using cuda::warp_sum;

// values[channel][pixel] in shared memory, zeros in pixels that do not exist. to: means in
// global memory, and `stride` behind them M2. Two passes, so that no digits are lost where the mean
// is large.
template <class A>
__device__ __forceinline__ void tile_moments(const Tiles& tiles, const TileAt& at, const A* values,
                                             int pitch, int channels, A* to, int stride) {
  const A pixels = static_cast<A>(at.rows() * at.columns());
  for (int c = warp(); c < channels; c += kThreads / kWarp) {
    const A* row = values + c * pitch;
    A sum{0};
    for (int p = lane(); p < tiles.pixels(); p += kWarp) sum += row[p];
    const A mean = warp_sum(sum) / pixels;
    A squares{0};
    for (int p = lane(); p < tiles.pixels(); p += kWarp) {
      const A d = row[p] - mean;
      if (at.holds(p / tiles.width, p % tiles.width)) squares += d * d;
    }
    squares = warp_sum(squares);
    if (lane() == 0) {
      to[c] = mean;
      to[stride + c] = squares;
    }
  }
}

}  // namespace metadnas::mixed_op
