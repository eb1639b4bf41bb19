// How images are cut into tiles, and the input pixels around a tile.
#pragma once

#include "mixed_op/cuda/frame.h"

namespace metadnas::mixed_op {

// An image's pixels in tiles of height x width, of which those at the edges may be partly empty.
// The cut depends on the image's size and its channels only.
struct Tiles {
  Divisor height;
  Divisor width;  // kStrip or twice that
  Divisor area;   // pixels, a power of two
  int image_height;
  int image_width;
  int down;
  Divisor across;

  __host__ __device__ int pixels() const { return area; }
  __host__ __device__ int count() const { return down * across; }
  __host__ __device__ int rows(int tile) const {
    const int left = image_height - tile / across * height;
    return left < height ? left : height;
  }
  __host__ __device__ int columns(int tile) const {
    const int left = image_width - tile % across * width;
    return left < width ? left : width;
  }
};

// At most `pixels` (a power of two, at least kStrip) of an image, not much more than it has.
inline Tiles make_tiles(int image_height, int image_width, int pixels) {
  const int width = image_width > kStrip && pixels >= kMostPixels ? 2 * kStrip : kStrip;
  int height = pixels / width;
  while (height / 2 >= image_height) height /= 2;
  Tiles t{};
  t.height = make_divisor(height);
  t.width = make_divisor(width);
  t.area = make_divisor(height * width);
  t.image_height = image_height;
  t.image_width = image_width;
  t.down = ceil_div(image_height, height);
  t.across = make_divisor(ceil_div(image_width, width));
  return t;
}

// The input pixels that a tile's convolutions reach, one plane a channel. The strides are such that
// a warp, some channels wide and some rows high, meets every bank of shared memory once.
struct Window {
  int reach;  // pixels beyond the tile, on each side
  int stride;
  int height;
  Divisor width;
  int row;
  int plane;
};

inline Window make_window(const Tiles& tiles, int stride, int reach, int chunk) {
  Window w{};
  w.reach = reach;
  w.stride = stride;
  w.height = (tiles.height - 1) * stride + 1 + 2 * reach;
  w.width = make_divisor((tiles.width - 1) * stride + 1 + 2 * reach);
  const auto up_to = [](int n, int residue, int modulus) {
    return n + ((residue - n) % modulus + modulus) % modulus;
  };
  const int rows = chunk < kWarp ? kWarp / chunk : 1;  // of a warp
  if (stride == 1) {
    w.row = w.width | 1;
    w.plane = up_to(w.height * w.row, rows == 1 ? 1 : rows, kWarp);
  } else {
    w.row = rows == 1 ? w.width : up_to(w.width, chunk / 2, 16);
    w.plane = up_to(w.height * w.row, 1, kWarp);
  }
  return w;
}

// Images as kernels read them: as they are, or normalised.
template <class S>
struct Source {
  Images<const S> images;
  int norm;  // kAbsent: as they are
};

// Input sizes and stride (1 or 2) of pools.
struct PoolShape {
  int height;
  int width;
  int stride;
};

}  // namespace metadnas::mixed_op
