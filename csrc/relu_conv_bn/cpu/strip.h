// Strips of output pixels: where their inputs lie, gathered into the first-level cache.
#pragma once

#include "relu_conv_bn/cpu/context.h"

namespace metadnas::METADNAS_ISA::relu_conv_bn {

// Offsets from a client's x of the inputs of a strip of one grid.
struct PixelOffsets {
  static constexpr ptrdiff_t kOutside = -1;
  ptrdiff_t* own;   // the pixel an output reads; kOutside: a zero
  ptrdiff_t* rest;  // stride 2: its neighbour in the row, which no grid reads; kOutside: none

  void fill(const Shape& shape, int grid, int64_t begin, int pixels) const {
    const int channels = shape.in_channels;
    if (shape.stride == 1) {
      for (int p = 0; p < pixels; ++p) own[p] = (begin + p) * channels;
      return;
    }
    const int out_width = shape.out_width();
    int64_t image = begin / shape.out_pixels();
    int h = static_cast<int>(begin % shape.out_pixels()) / out_width;
    int w = static_cast<int>(begin % out_width);
    for (int p = 0; p < pixels; ++p) {
      const int row = 2 * h + grid;
      auto offset = [&](int column) {
        return row < shape.height && column < shape.width
                   ? image * shape.in_image() + (int64_t{row} * shape.width + column) * channels
                   : kOutside;
      };
      own[p] = offset(2 * w + grid);
      rest[p] = offset(2 * w + 1 - grid);
      if (++w < out_width) continue;
      w = 0;
      if (++h < shape.out_height()) continue;
      h = 0;
      ++image;
    }
  }
};

// Scratch of one task: strips of inputs (behind the rectifier) and, in backward, of gradients of z.
template <class T>
struct StripScratch {
  int pixels;
  ptrdiff_t plane;
  PixelOffsets offsets;
  T* in;
  T* grad_z;
  ChunkMoments<T>* moments;  // per output block of all grids

  explicit StripScratch(const Context<T>& context) : pixels(strip_pixels(context)) {
    plane = static_cast<ptrdiff_t>(pixels + kStripSlack) * kLanes<T>;
    const int64_t in_size = context.in_blocks() * plane;
    const int64_t out_size = context.grid_blocks() * plane;
    const int64_t blocks = int64_t{context.grid_blocks()} * context.shape.grids();
    Arena& arena = worker_arena();
    arena.reset(static_cast<size_t>(in_size + out_size) * sizeof(T) +
                static_cast<size_t>(2 * pixels) * sizeof(ptrdiff_t) +
                static_cast<size_t>(blocks) * sizeof(ChunkMoments<T>) + 5 * 64);
    in = arena.take<T>(in_size);
    grad_z = arena.take<T>(out_size);
    offsets = {arena.take<ptrdiff_t>(pixels), arena.take<ptrdiff_t>(pixels)};
    moments = arena.take<ChunkMoments<T>>(blocks);
  }

 private:
  // Whole tiles, about half of a first-level cache of 32 KiB.
  static int strip_pixels(const Context<T>& context) {
    constexpr int kBytes = 20 << 10;
    const int pixel_bytes = (context.in_blocks() + context.grid_blocks()) * METADNAS_VECTOR_BYTES;
    const int wanted = kBytes / pixel_bytes / 16 * 16;
    return wanted < 32 ? 32 : wanted > 64 ? 64 : wanted;
  }
};

// in[block][pixel][lane] = x at the strip's own pixels, rectified if kRelu.
template <bool kRelu, class T>
void gather_as(const Context<T>& context, const T* x, int pixels, const StripScratch<T>& to) {
  constexpr int L = kLanes<T>;
  const Shape& shape = context.shape;
  const ptrdiff_t plane = to.plane;
  const int last = context.in_blocks() - 1;
  const int live = context.live_in(last);
  // Where the next strip will be read, exactly so at the usual sizes: fetched during the products.
  const ptrdiff_t ahead =
      static_cast<ptrdiff_t>(to.pixels) * shape.stride * shape.stride * shape.in_channels;
  auto rectified = [](Vec<T> v) METADNAS_INLINE { return kRelu ? relu(v) : v; };
  for (int p = 0; p < pixels; ++p) {
    const ptrdiff_t offset = to.offsets.own[p];
    T* strip = to.in + p * L;
    if (offset == PixelOffsets::kOutside) {
      for (int block = 0; block <= last; ++block) store(strip + block * plane, Vec<T>{});
      continue;
    }
    const T* from = x + offset;
    for (int block = 0; block < last; ++block, from += L) {
      __builtin_prefetch(from + ahead, 0, 2);
      store(strip + block * plane, rectified(load(from)));
    }
    __builtin_prefetch(from + ahead, 0, 2);
    store(strip + last * plane, rectified(load_first(from, live)));
  }
}

template <class T>
void gather(const Context<T>& context, const T* x, int pixels, const StripScratch<T>& to) {
  if (context.args.relu) {
    gather_as<true>(context, x, pixels, to);
  } else {
    gather_as<false>(context, x, pixels, to);
  }
}

// Calls body(first pixel, pixels) for each strip of a task.
template <class Body>
METADNAS_INLINE inline void for_each_strip(const Task& task, int pixels, Body&& body) {
  for (int64_t begin = task.begin; begin < task.end; begin += pixels) {
    body(begin, static_cast<int>(task.end - begin < pixels ? task.end - begin : pixels));
  }
}

}  // namespace metadnas::METADNAS_ISA::relu_conv_bn
