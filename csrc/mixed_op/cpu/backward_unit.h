// Gradient of one unit on one image: through batch norm, the pointwise product and the depthwise
// convolution, with both weight gradients.
#pragma once

#include "mixed_op/cpu/context.h"

namespace metadnas::METADNAS_ISA {

// Scratch of one task for one resolution of unit inputs.
template <class T>
struct UnitScratch {
  PaddedImage<T> in;      // the unit's input
  PaddedImage<T> grad_d;  // gradient behind the depthwise convolution, zero-stuffed at stride 2
  T* d;                   // strips, [in block][pixel][lane]
  T* dz;
  T* row;  // a strip at the input's resolution
  ptrdiff_t plane;
  ptrdiff_t row_plane;
  ptrdiff_t* targets;  // offset in grad_d of each pixel of a strip

  UnitScratch(const Context<T>& context, const PaddedImage<T>& image, const Strip& in_strip)
      : in(image),
        grad_d(image),
        plane(static_cast<ptrdiff_t>(context.layout.out_strip.capacity) * kLanes<T>),
        row_plane(static_cast<ptrdiff_t>(in_strip.capacity) * kLanes<T>),
        blocks_(context.layout.blocks),
        pixels_(context.layout.out_strip.capacity) {}

  size_t bytes() const {
    return static_cast<size_t>(2 * in.size() + 3 * blocks_ * plane + blocks_ * row_plane) *
               sizeof(T) +
           static_cast<size_t>(pixels_) * sizeof(ptrdiff_t) + 6 * 64;
  }
  void take(Arena& arena) {
    in.data = arena.take<T>(in.size());
    grad_d.data = arena.take<T>(grad_d.size());
    d = arena.take<T>(2 * blocks_ * plane);
    dz = arena.take<T>(blocks_ * plane);
    row = arena.take<T>(blocks_ * row_plane);
    targets = arena.take<ptrdiff_t>(pixels_);
    in.clear();
    grad_d.clear();
  }

 private:
  int64_t blocks_;
  int64_t pixels_;
};

// dz of one strip, blocked, zeros in dead lanes.
template <class T>
void strip_grad_z(const Context<T>& context, const NormGradient<T>& norm, const T* mean,
                  const T* grad, const T* z, int pixels, T* dz, ptrdiff_t plane) {
  constexpr int L = kLanes<T>;
  const int channels = context.geometry.channels;
  for (int block = 0; block < context.layout.blocks; ++block) {
    const int live = context.layout.live(block);
    const int at = block * L;
    const Vec<T> scale = load(norm.scale + at), slope = load(norm.slope + at);
    const Vec<T> shift = load(norm.shift + at), m = load(mean + at);
    T* to = dz + block * plane;
    for (int p = 0; p < pixels; ++p) {
      const ptrdiff_t pixel = static_cast<ptrdiff_t>(p) * channels + at;
      const Vec<T> g = load_first(grad + pixel, live);
      const Vec<T> v = load_first(z + pixel, live);
      store(to + p * L, scale * g + (slope * (v - m) + shift));
    }
  }
}

// From `grad`, the gradient of batch norm's result (before its mixing weight, which `norm` holds),
// to weight gradients and either scratch.grad_d or, for a factorized reduce, `grad_in` directly.
template <class T>
void unit_backward(const Context<T>& context, const Unit& unit, const PackedUnit<T>& packed,
                   const NormGradient<T>& norm, const T* mean, const T* grad, const T* z,
                   const UnitScratch<T>& scratch, const PaddedImage<T>* grad_in, T* weight_grad) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const Strip& cut = context.layout.out_strip;
  const ptrdiff_t plane = scratch.plane;
  T* taps_grad = weight_grad;
  T* matrix_grad = weight_grad + context.taps_size(unit);
  const PaddedImage<T>& target = unit.factorized() ? *grad_in : scratch.grad_d;
  for (int p = 0; p < cut.rows * g.out_width; ++p) {
    scratch.targets[p] = p / g.out_width * unit.stride * target.row +
                         static_cast<ptrdiff_t>(p % g.out_width) * unit.stride * L;
  }
  for (int row0 = 0; row0 < g.out_height; row0 += cut.rows) {
    const int rows = g.out_height - row0 < cut.rows ? g.out_height - row0 : cut.rows;
    const int pixels = rows * g.out_width;
    const ptrdiff_t start = static_cast<ptrdiff_t>(row0) * g.out_width * g.channels;
    strip_grad_z(context, norm, mean, grad + start, z + start, pixels, scratch.dz, plane);
    unit_strip(context, unit, packed, scratch.in, row0, rows, scratch.d, plane);
    pointwise_weight_grad(scratch.dz, plane, context.layout.blocks, scratch.d, plane,
                          context.in_blocks(unit), pixels, matrix_grad);
    auto scatter = [&]<int MP>(int block, int p0, int valid, Vec<T>(&acc)[MP]) METADNAS_INLINE {
      const int grid = block / context.layout.blocks;  // 1: the shifted half of a factorized reduce
      T* to = target.at(block - grid * context.layout.blocks, row0 * unit.stride + grid, grid);
      unroll<MP>([&]<int p>() METADNAS_INLINE {
        if (p < valid) {
          T* pixel = to + scratch.targets[p0 + p];
          store(pixel, unit.factorized() ? load(pixel) + acc[p] : acc[p]);
        }
      });
    };
    pointwise(scratch.dz, plane, g.channels, packed.transposed, context.in_row(unit), pixels,
              scatter);
  }
  if (unit.factorized()) return;
  with_depthwise<T>(unit.kernel, unit.dilation, unit.stride, context.layout.out_tile,
                    [&]<int K, int D, int S, int TW>() {
                      for (int block = 0; block < context.layout.blocks; ++block) {
                        depthwise_weight_grad<K, D, S, kGradTile<K, TW>>(
                            scratch.grad_d, scratch.in, block, g.out_height, g.out_width,
                            taps_grad + block * K * K * L);
                      }
                    });
}

// Gradient of a unit's (rectified) input, strip by strip: use(block, first row, rows, values).
template <class T, class Use>
METADNAS_INLINE inline void unit_input_grad(const Context<T>& context, const Unit& unit,
                                            const PackedUnit<T>& packed, const Strip& cut, int tile,
                                            const UnitScratch<T>& scratch, Use&& use) {
  const PaddedImage<T>& from = scratch.grad_d;
  const DepthwiseRows<T> rows_of{from,       packed.flipped, unit.stride == 2,
                                 from.width, scratch.row,    scratch.row_plane};
  for (int row0 = 0; row0 < from.height; row0 += cut.rows) {
    const int rows = from.height - row0 < cut.rows ? from.height - row0 : cut.rows;
    with_depthwise<T>(unit.kernel, unit.dilation, 1, tile, [&]<int K, int D, int S, int TW>() {
      if constexpr (S == 1) depthwise_rows<K, D, 1, TW>(rows_of, row0, rows);
    });
    for (int block = 0; block < context.layout.blocks; ++block) {
      use(block, row0, rows, scratch.row + block * scratch.row_plane);
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
