// A block's part of the work: 64 output pixels of one client, counted over all of its images, and
// some channels of one grid. The cut depends on neither the cohort nor the images that do not
// count.
#pragma once

#include "common/cuda/dtypes.cuh"
#include "common/cuda/tile_product.cuh"
#include "relu_conv_bn/cuda/kernels.h"

namespace metadnas::relu_conv_bn {

using cuda::ceil_div;

// Output pixels of a client in all of its images, and in those that count.
template <class T, class S>
__device__ __forceinline__ int64_t all_pixels(const Args<T, S>& args) {
  return args.shape.images * args.shape.out_pixels();
}
template <class T, class S>
__device__ __forceinline__ int64_t counted_pixels(const Args<T, S>& args, int64_t client) {
  const int64_t images = min(max(args.count(client), int64_t{0}), args.shape.images);
  return images * args.shape.out_pixels();
}

// Where an output pixel's input lies, from a client's x on.
struct Offsets {
  static constexpr int64_t kOutside = -1;
  int64_t own;   // the pixel that the output reads; kOutside: a zero
  int64_t rest;  // stride 2: its neighbour in the row, which no grid reads; kOutside: none

  static __device__ __forceinline__ Offsets of(const Shape& shape, int grid, int64_t pixel) {
    if (shape.stride == 1) return {pixel * shape.in_channels, kOutside};
    const int64_t image = pixel / shape.out_pixels();
    const int inside = static_cast<int>(pixel - image * shape.out_pixels());
    const int row = inside / shape.out_width(), column = inside % shape.out_width();
    return {at(shape, image, 2 * row + grid, 2 * column + grid),
            at(shape, image, 2 * row + grid, 2 * column + 1 - grid)};
  }

 private:
  static __device__ __forceinline__ int64_t at(const Shape& shape, int64_t image, int row,
                                               int column) {
    if (row >= shape.height || column >= shape.width) return kOutside;
    return image * shape.in_image() + (int64_t{row} * shape.width + column) * shape.in_channels;
  }
};

// How a launch is cut: blocks are [client][pixel tile][grid][tile of `columns` columns].
struct Cut {
  int64_t pixel_tiles;
  int grids;
  int column_tiles;

  __host__ __device__ int64_t blocks(int64_t clients) const {
    return clients * pixel_tiles * grids * column_tiles;
  }
};

template <int kColumns>
inline Cut cut_for(const Shape& shape, int columns) {
  return {ceil_div(shape.images * shape.out_pixels(), kTilePixels), shape.grids(),
          ceil_div(columns, kColumns)};
}

// This block's place in a cut.
struct Place {
  int64_t client;
  int64_t tile;  // of pixels
  int grid;
  int column_tile;

  __device__ __forceinline__ explicit Place(const Cut& cut) {
    int64_t block = blockIdx.x;
    column_tile = static_cast<int>(block % cut.column_tiles);
    block /= cut.column_tiles;
    grid = static_cast<int>(block % cut.grids);
    block /= cut.grids;
    tile = block % cut.pixel_tiles;
    client = block / cut.pixel_tiles;
  }
};

// Of the tile's pixels, those before `end`.
__device__ __forceinline__ int pixels_before(int64_t end, int64_t tile) {
  const int64_t left = end - tile * kTilePixels;
  return static_cast<int>(max(int64_t{0}, min(left, int64_t{kTilePixels})));
}

// f.operator()<columns>() for tiles about as wide as the columns there are. Double precision is for
// checks: one width will do.
template <class T, class F>
void with_columns(int columns, F&& f) {
  if constexpr (sizeof(T) == sizeof(double)) {
    f.template operator()<32>();
  } else if (columns <= 16) {
    f.template operator()<16>();
  } else if (columns <= 32) {
    f.template operator()<32>();
  } else {
    f.template operator()<64>();
  }
}

}  // namespace metadnas::relu_conv_bn
