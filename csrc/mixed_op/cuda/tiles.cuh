// A block's tile, and the input pixels around it in shared memory.
#pragma once

#include "mixed_op/cuda/frame.cuh"
#include "mixed_op/cuda/tiles.h"

namespace metadnas::mixed_op {

// One tile of one image.
struct TileAt {
  const Tiles& tiles;
  int64_t client;
  int64_t image;  // among those of all clients
  int tile;

  __device__ int row() const { return tile / tiles.across * tiles.height; }
  __device__ int column() const { return tile % tiles.across * tiles.width; }

  // Of blocks that have image after image, tile after tile: their number fits 32 bits.
  __device__ static TileAt of_block(const Tiles& tiles, int64_t images) {
    const unsigned count = static_cast<unsigned>(tiles.count());
    const unsigned image = blockIdx.x / count;
    return {tiles, image / static_cast<unsigned>(images), image,
            static_cast<int>(blockIdx.x - image * count)};
  }

  // Whether a pixel of the tile exists, and how many rows and columns do.
  __device__ bool holds(int r, int c) const {
    return row() + r < tiles.image_height && column() + c < tiles.image_width;
  }
  __device__ int rows() const { return min(tiles.image_height - row(), tiles.height.value); }
  __device__ int columns() const { return min(tiles.image_width - column(), tiles.width.value); }
};

// The first of V channels that a thread loads into a window of `chunk` channels.
template <int V>
__device__ __forceinline__ int window_channel(Divisor chunk) {
  return thread() * V % chunk;
}

// Fills the planes of the thread's channels with what source.transform(x) makes of the V values x
// at source.at(h, w), and zeros where that is null and beyond the image. (row, column) is the
// window's first pixel in the image. A thread has kUnderWay loads on their way before it uses any.
template <int kUnderWay, int V, class A, class PixelSource>
__device__ __forceinline__ void fill_window(const Window& window, Divisor chunk, int row,
                                            int column, int height, int width, A* to,
                                            const PixelSource& source) {
  using S = std::remove_cvref_t<decltype(*source.at(0, 0))>;
  to += window_channel<V>(chunk) * window.plane;
  const int pixels = window.height * window.width, step = kThreads * V / chunk;
  for (int first = thread() * V / chunk; first < pixels; first += kUnderWay * step) {
    Pack<S, V> loads[kUnderWay];
    bool there[kUnderWay];
#pragma unroll
    for (int n = 0; n < kUnderWay; ++n) {
      const int p = first + n * step;
      const int h = row + p / window.width, w = column + p % window.width;
      const bool inside = p < pixels && h >= 0 && h < height && w >= 0 && w < width;
      const S* const from = inside ? source.at(h, w) : nullptr;
      there[n] = from != nullptr;
      if (there[n]) loads[n] = *reinterpret_cast<const Pack<S, V>*>(from);
    }
#pragma unroll
    for (int n = 0; n < kUnderWay; ++n) {
      const int p = first + n * step;
      if (p >= pixels) break;
      A* const at = to + p / window.width * window.row + p % window.width;
      A values[V] = {};
      if (there[n]) {
#pragma unroll
        for (int i = 0; i < V; ++i) values[i] = loaded(loads[n].of[i]);
        source.transform(values);
      }
#pragma unroll
      for (int i = 0; i < V; ++i) at[i * window.plane] = values[i];
    }
  }
}

// V channels of a source's pixels, rectified.
template <class S, int V>
class Rectified {
  using A = Accumulate<S>;

 public:
  __device__ Rectified(const Frame<S>& frame, const Source<S>& source, const TileAt& at, int width,
                       int channel)
      : from_(source.images.data + at.image * source.images.image + channel),
        pitch_(static_cast<int>(source.images.pitch)),
        width_(width),
        normalise_(source.norm != kAbsent) {
    if (!normalise_) return;
    const A* norm = frame.norm(at.client, source.norm) + channel;
    A gamma[V];
    load<V>(norm, mean_);
    load<V>(norm + kInverse * frame.channels, scale_);
    load<V>(norm + kGamma * frame.channels, gamma);
    load<V>(norm + kBeta * frame.channels, beta_);
#pragma unroll
    for (int i = 0; i < V; ++i) scale_[i] *= gamma[i];
  }
  __device__ const S* at(int h, int w) const {
    return from_ + static_cast<int64_t>(h * width_ + w) * pitch_;
  }
  __device__ void transform(A (&x)[V]) const {
    if (normalise_) {
#pragma unroll
      for (int i = 0; i < V; ++i) x[i] = (x[i] - mean_[i]) * scale_[i] + beta_[i];
    }
#pragma unroll
    for (int i = 0; i < V; ++i) x[i] = relu(x[i]);
  }

 private:
  const S* from_;
  int pitch_;
  int width_;
  bool normalise_;
  A mean_[V] = {}, scale_[V] = {}, beta_[V] = {};
};

}  // namespace metadnas::mixed_op
