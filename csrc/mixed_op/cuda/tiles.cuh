// A block's tile, and the input pixels around it in shared memory.
#pragma once

#include "mixed_op/cuda/frame.cuh"
#include "mixed_op/cuda/tiles.h"

namespace metadnas::mixed_op {

// One tile of one image.
struct TileAt {
  int64_t client;
  int64_t image;  // among those of all clients
  int tile;
  int row;
  int column;
  int rows;  // that exist
  int columns;

  // index: image after image, tile after tile
  __device__ TileAt(const Tiles& tiles, int64_t images, int64_t index)
      : client(index / tiles.count() / images),
        image(index / tiles.count()),
        tile(static_cast<int>(index % tiles.count())),
        row(tile / tiles.across * tiles.height),
        column(tile % tiles.across * tiles.width),
        rows(tiles.rows(tile)),
        columns(tiles.columns(tile)) {}

  __device__ bool holds(int r, int c) const { return r < rows && c < columns; }
};

// The first of V channels that a thread loads into a window of `chunk` channels.
template <int V>
__device__ __forceinline__ int window_channel(int chunk) {
  return thread() % (chunk / V) * V;
}

// Fills the planes of the thread's channels: load(h, w, values) for pixels of the image, zeros
// beyond it. (row, column) is the window's first pixel in the image.
template <int V, class A, class Load>
__device__ __forceinline__ void fill_window(const Window& window, int chunk, int row, int column,
                                            int height, int width, A* to, const Load& load) {
  to += window_channel<V>(chunk) * window.plane;
  const int step = kThreads / (chunk / V);
  for (int p = thread() / (chunk / V); p < window.height * window.width; p += step) {
    const int r = static_cast<int>(static_cast<unsigned>(p) * window.inverse >> 16);
    const int c = p - r * window.width;
    const int h = row + r, w = column + c;
    A values[V] = {};
    if (h >= 0 && h < height && w >= 0 && w < width) load(h, w, values);
#pragma unroll
    for (int i = 0; i < V; ++i) to[i * window.plane + r * window.row + c] = values[i];
  }
}

// Loads V channels of a source's rectified pixels.
template <class S, int V>
class RectifiedLoad {
  using A = Accumulate<S>;

 public:
  __device__ RectifiedLoad(const Frame<S>& frame, const Source<S>& source, const TileAt& at,
                           int width, int channel)
      : from_(source.images.data + at.image * source.images.image + channel),
        pitch_(source.images.pitch),
        width_(width),
        normalise_(source.norm != kAbsent) {
    const A* norm = normalise_ ? frame.norm(at.client, source.norm) + channel : nullptr;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      mean_[i] = normalise_ ? norm[i] : A{0};
      scale_[i] = normalise_
                      ? norm[kInverse * frame.channels + i] * norm[kGamma * frame.channels + i]
                      : A{1};
      beta_[i] = normalise_ ? norm[kBeta * frame.channels + i] : A{0};
    }
  }
  __device__ void operator()(int h, int w, A (&values)[V]) const {
    load<V>(from_ + (static_cast<int64_t>(h) * width_ + w) * pitch_, values);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const A x = normalise_ ? (values[i] - mean_[i]) * scale_[i] + beta_[i] : values[i];
      values[i] = relu(x);
    }
  }

 private:
  const S* from_;
  int64_t pitch_;
  int width_;
  bool normalise_;
  A mean_[V], scale_[V], beta_[V];
};

}  // namespace metadnas::mixed_op
