// Depthwise convolutions of windows in shared memory.
#pragma once

#include "common/cuda/copy.cuh"
#include "mixed_op/cuda/tiles.cuh"

namespace metadnas::mixed_op {

using cuda::copy_async;
using cuda::wait_for_copies;

// A thread's part of a tile: kStrip pixels of one row of one channel. Neighbouring threads have
// neighbouring channels, then rows.
struct StripAt {
  int channel;  // of the chunk
  int row;
  int column;

  __device__ StripAt(int row, int column) : channel(0), row(row), column(column) {}
  __device__ StripAt(const Tiles& tiles, Divisor chunk, int item)
      : channel(item % chunk),
        row(item / chunk % tiles.height),
        column(item / chunk / tiles.height * kStrip) {}
  __host__ __device__ static int count(const Tiles& tiles, int chunk) {
    return chunk * tiles.pixels() / kStrip;
  }
};

// in: the window's pixel under tap 0 of the strip's first pixel. taps: `step` apart.
template <int K, int D, int S, class A>
__device__ __forceinline__ void depthwise_strip(const A* in, int row, const A* taps, int step,
                                                A (&out)[kStrip]) {
  for (int kh = 0; kh < K; ++kh, in += D * row, taps += K * step) {
    A tap[K];
#pragma unroll
    for (int k = 0; k < K; ++k) tap[k] = taps[k * step];
    // Each pixel is read once and feeds every tap that meets it.
#pragma unroll
    for (int j = 0; j < (kStrip - 1) * S + (K - 1) * D + 1; ++j) {
      const A v = in[j];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int offset = j - k * D;
        if (offset >= 0 && offset % S == 0 && offset / S < kStrip) out[offset / S] += v * tap[k];
      }
    }
  }
}

// Where tap (0, 0) of a strip's first pixel lies in its channel's plane.
template <int K, int D, int S>
__device__ __forceinline__ int first_tap(const Window& window, const StripAt& at) {
  const int before = window.reach - (K - 1) / 2 * D;
  return (at.row * S + before) * window.row + at.column * S + before;
}

// Begins to copy taps[k][channel] of channels [first, first + chunk) out of (channel, k) in `from`;
// flipped: rotated by 180 degrees.
template <class A>
__device__ __forceinline__ void stage_taps(const A* from, int count, int first, Divisor chunk,
                                           int channels, bool flipped, A* taps) {
  const int c = thread() % chunk;
  if (first + c >= channels) return;
  from += static_cast<int64_t>(first + c) * count;
  for (int k = thread() / chunk; k < count; k += kThreads / chunk) {
    copy_async(taps + (flipped ? count - 1 - k : k) * chunk + c, from + k);
  }
}

// The depthwise results of a chunk of channels: values[channel][pixel] from the window in `tile`.
template <class A>
__device__ __forceinline__ void depthwise_tile(const Tiles& tiles, const Window& window, int kernel,
                                               int dilation, Divisor chunk, int live, const A* tile,
                                               const A* taps, A* values, int pitch) {
  with_depthwise(kernel, dilation, window.stride, [&]<int K, int D, int S>() {
    for (int i = thread(); i < StripAt::count(tiles, chunk); i += kThreads) {
      const StripAt at(tiles, chunk, i);
      if (at.channel >= live) continue;
      A out[kStrip] = {};
      depthwise_strip<K, D, S>(tile + at.channel * window.plane + first_tap<K, D, S>(window, at),
                               window.row, taps + at.channel, chunk, out);
      store<kStrip>(values + at.channel * pitch + at.row * tiles.width + at.column, out);
    }
  });
}

// The same for a factorized reduce: every second pixel, of grid 0 or the shifted grid 1.
template <class A>
__device__ __forceinline__ void gather_grid(const Tiles& tiles, const Window& window, int grid,
                                            Divisor chunk, int live, const A* tile, A* values,
                                            int pitch) {
  for (int i = thread(); i < StripAt::count(tiles, chunk); i += kThreads) {
    const StripAt at(tiles, chunk, i);
    if (at.channel >= live) continue;
    const A* in = tile + at.channel * window.plane +
                  (at.row * 2 + grid + window.reach) * window.row + at.column * 2 + grid +
                  window.reach;
    A out[kStrip];
#pragma unroll
    for (int j = 0; j < kStrip; ++j) out[j] = in[2 * j];
    store<kStrip>(values + at.channel * pitch + at.row * tiles.width + at.column, out);
  }
}

}  // namespace metadnas::mixed_op
