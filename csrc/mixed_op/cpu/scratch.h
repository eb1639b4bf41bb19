// Blocked, zero-padded images: the layout convolutions work on.
#pragma once

#include "common/batch_norm.h"
#include "mixed_op/args.h"

namespace metadnas::METADNAS_ISA {

// A 5x5 convolution with dilation 2 reaches 4 pixels beyond the image: with a zero halo this wide
// no kernel needs edge code.
inline constexpr int kHalo = 4;

constexpr int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Whether a depthwise tile may be 16 pixels wide. Not for double, which is there for checking and
// would only take its time to compile.
template <class T>
inline constexpr bool kWideTiles = kRegisters == 32 && sizeof(T) == 4;

// Pixels of one row computed at once.
template <class T>
inline int tile_width(int width) {
  if (kWideTiles<T> && width % 16 == 0) return 16;
  // 8 unless it wastes more than half of a tile against 4.
  return round_up(width, 8) - width < 4 ? 8 : 4;
}

// [block][row][column][lane] with a halo; `row` and `plane` are strides in elements.
template <class T>
struct PaddedImage {
  T* data = nullptr;
  int height = 0;
  int width = 0;
  int blocks = 0;
  ptrdiff_t row = 0;
  ptrdiff_t plane = 0;

  // Room for tiles that run over the right edge by up to `slack` columns.
  PaddedImage(int height, int width, int blocks, int slack)
      : height(height),
        width(width),
        blocks(blocks),
        row(static_cast<ptrdiff_t>(width + slack + 2 * kHalo) * kLanes<T>),
        plane(row * (height + 2 * kHalo)) {}

  // Tiles of dilated weight gradients reach up to kHalo columns further, which is the left halo of
  // the next row; behind the last one there are as many zeros.
  int64_t size() const { return plane * blocks + kHalo * kLanes<T>; }

  // Valid for -kHalo <= h, w.
  T* at(int block, int h, int w) const {
    return data + block * plane + (h + kHalo) * row + static_cast<ptrdiff_t>(w + kHalo) * kLanes<T>;
  }

  void clear() const { __builtin_memset(data, 0, static_cast<size_t>(size()) * sizeof(T)); }
};

// Output rows handled at once: enough pixels for whole register tiles, few enough that a strip of
// every channel block stays in the first-level cache.
struct Strip {
  int rows;
  int capacity;  // pixels of a strip buffer: whole register tiles and a depthwise tile's overrun

  Strip(int height, int width) {
    constexpr int kPixels = 32;
    rows = width >= kPixels ? 1 : kPixels / width;
    if (rows > height) rows = height;
    capacity = round_up(rows * width, 16) + 16;
  }
};

// Sizes that every stage of one call shares.
template <class T>
struct Layout {
  Geometry geometry;
  int blocks;           // channel blocks of kLanes<T>
  int padded_channels;  // blocks * lanes
  int in_tile;          // width of a depthwise tile at input resolution
  int out_tile;         // and at output resolution
  Strip in_strip;
  Strip out_strip;

  explicit Layout(const Geometry& g)
      : geometry(g),
        blocks(round_up(g.channels, kLanes<T>) / kLanes<T>),
        padded_channels(blocks * kLanes<T>),
        in_tile(tile_width<T>(g.width)),
        out_tile(tile_width<T>(g.out_width)),
        in_strip(g.height, g.width),
        out_strip(g.out_height, g.out_width) {}

  // Lanes in use in a channel block.
  int live(int block) const {
    const int rest = geometry.channels - block * kLanes<T>;
    return rest < kLanes<T> ? rest : kLanes<T>;
  }

  PaddedImage<T> input_image() const {
    const Geometry& g = geometry;
    const int reach = round_up(g.out_width, out_tile) * g.stride;
    const int own = round_up(g.width, in_tile);
    return PaddedImage<T>(g.height, g.width, blocks, (reach > own ? reach : own) - g.width);
  }

  PaddedImage<T> output_image() const {
    const Geometry& g = geometry;
    return PaddedImage<T>(g.out_height, g.out_width, blocks,
                          round_up(g.out_width, out_tile) - g.out_width);
  }
};

// relu(x) of one channels-last image with pixels `pitch` apart, blocked.
template <class T>
inline void pad_relu(const Layout<T>& layout, const T* x, int64_t pitch, const PaddedImage<T>& to) {
  for (int block = 0; block < layout.blocks; ++block) {
    const int live = layout.live(block);
    for (int h = 0; h < to.height; ++h) {
      const T* from = x + h * to.width * pitch + block * kLanes<T>;
      T* row = to.at(block, h, 0);
      for (int w = 0; w < to.width; ++w) {
        store(row + w * kLanes<T>, relu(load_first(from + w * pitch, live)));
      }
    }
  }
}

// relu(scale * (z - mean) + beta) of one channels-last image, blocked.
template <class T>
inline void pad_normalised_relu(const Layout<T>& layout, const T* z, const NormVectors<T>& norm,
                                const PaddedImage<T>& to) {
  const ptrdiff_t channels = layout.geometry.channels;
  for (int block = 0; block < layout.blocks; ++block) {
    const int live = layout.live(block);
    const Vec<T> m = load(norm.mean + block * kLanes<T>);
    const Vec<T> a = norm.scale(block * kLanes<T>);
    const Vec<T> b = load(norm.beta + block * kLanes<T>);
    for (int h = 0; h < to.height; ++h) {
      const T* from = z + h * to.width * channels + block * kLanes<T>;
      T* row = to.at(block, h, 0);
      for (int w = 0; w < to.width; ++w) {
        const Vec<T> v = load_first(from + w * channels, live);
        store(row + w * kLanes<T>, relu(a * (v - m) + b));
      }
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
