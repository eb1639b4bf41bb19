// Gradient of one unit on one image: through batch norm, the pointwise product and the depthwise
// convolution, with both weight gradients.
#pragma once

#include "mixed_op/cpu/unit.h"

namespace metadnas::METADNAS_ISA {

// Scratch of one task for one resolution of unit inputs.
template <class T>
struct UnitScratch {
  PaddedImage<T> in;      // the unit's input
  PaddedImage<T> grad_d;  // gradient behind the depthwise convolution, zero-stuffed at stride 2
  T* d;                   // strips, [in block][pixel][lane]
  T* dz;
  ptrdiff_t plane;
  ptrdiff_t* targets;  // offset in grad_d of each pixel of a strip

  UnitScratch(const Context<T>& context, const PaddedImage<T>& image)
      : in(image),
        grad_d(image),
        plane(static_cast<ptrdiff_t>(context.layout.out_strip.capacity) * kLanes<T>),
        blocks_(context.layout.blocks),
        pixels_(context.layout.out_strip.capacity) {}

  size_t bytes() const {
    return static_cast<size_t>(2 * in.size() + 3 * blocks_ * plane) * sizeof(T) +
           static_cast<size_t>(pixels_) * sizeof(ptrdiff_t) + 5 * 64;
  }
  void take(Arena& arena) {
    in.data = arena.take<T>(in.size());
    grad_d.data = arena.take<T>(grad_d.size());
    d = arena.take<T>(2 * blocks_ * plane);
    dz = arena.take<T>(blocks_ * plane);
    targets = arena.take<ptrdiff_t>(pixels_);
    in.clear();
    grad_d.clear();
  }

 private:
  int64_t blocks_;
  int64_t pixels_;
};

// What a unit's gradient starts from on one image.
template <class T>
struct UnitGradient {
  NormGradient<T> norm;  // holds the mixing weight
  const T* mean;
  const T* grad;  // of batch norm's result
  ptrdiff_t pitch;
  const T* z;      // null: made again
  T* weight_grad;  // null: not wanted
  bool need_input;
  Ahead<T> ahead;
};

// dz of one strip from its kept results, blocked, zeros in dead lanes.
template <class T>
void strip_grad_z(const Context<T>& context, const UnitGradient<T>& from, ptrdiff_t pixel,
                  int pixels, T* dz, ptrdiff_t plane) {
  constexpr int L = kLanes<T>;
  const ptrdiff_t channels = context.geometry.channels;
  const T* grad = from.grad + pixel * from.pitch;
  const T* z = from.z + pixel * channels;
  for (int block = 0; block < context.layout.blocks; ++block) {
    const int live = context.layout.live(block);
    const int at = block * L;
    const Vec<T> scale = load(from.norm.scale + at), slope = load(from.norm.slope + at);
    const Vec<T> shift = load(from.norm.shift + at), mean = load(from.mean + at);
    T* to = dz + block * plane;
    auto fill = [&](int lanes) METADNAS_INLINE {
      for (int p = 0; p < pixels; ++p) {
        // The next strip is asked for meanwhile.
        prefetch(grad + (p + pixels) * from.pitch + at, 1);
        prefetch(z + (p + pixels) * channels + at, 1);
        const Vec<T> g = load_first(grad + p * from.pitch + at, lanes);
        const Vec<T> v = load_first(z + p * channels + at, lanes);
        store(to + p * L, scale * g + (slope * (v - mean) + shift));
      }
    };
    live == L ? fill(L) : fill(live);
  }
}

// The same from the depthwise results in `d`, for a result that was not kept.
template <class T>
void remade_grad_z(const Context<T>& context, const Unit& unit, const PackedUnit<T>& packed,
                   const UnitGradient<T>& from, ptrdiff_t pixel, int pixels, const T* d, T* dz,
                   ptrdiff_t plane) {
  constexpr int L = kLanes<T>;
  auto use = [&]<int MP>(int block, int p0, int valid, Vec<T>(&acc)[MP]) METADNAS_INLINE {
    const int live = context.layout.live(block);
    const int at = block * L;
    const Vec<T> scale = load(from.norm.scale + at), slope = load(from.norm.slope + at);
    const Vec<T> shift = load(from.norm.shift + at), mean = load(from.mean + at);
    const T* grad = from.grad + (pixel + p0) * from.pitch + at;
    T* to = dz + block * plane + p0 * L;
    unroll<MP>([&]<int p>() METADNAS_INLINE {
      if (p < valid) {
        const Vec<T> g = load_first(grad + p * from.pitch, live);
        store(to + p * L, scale * g + (slope * (acc[p] - mean) + shift));
      }
    });
  };
  pointwise(d, plane, context.in_channels(unit), packed.matrix, context.layout.padded_channels,
            pixels, use);
}

// From the gradient of batch norm's result to weight gradients and, if wanted, either
// scratch.grad_d or, for a factorized reduce, `grad_in` directly.
template <class T>
void unit_backward(const Context<T>& context, const Unit& unit, const PackedUnit<T>& packed,
                   const UnitGradient<T>& from, const UnitScratch<T>& scratch,
                   const PaddedImage<T>* grad_in) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  const ptrdiff_t plane = scratch.plane;
  const PaddedImage<T>& target = unit.factorized() ? *grad_in : scratch.grad_d;
  const bool need_taps = from.weight_grad != nullptr && !unit.factorized();
  const bool need_d = from.weight_grad != nullptr || from.z == nullptr;
  for (int p = 0; p < context.layout.out_strip.rows * g.out_width; ++p) {
    scratch.targets[p] = p / g.out_width * unit.stride * target.row +
                         static_cast<ptrdiff_t>(p % g.out_width) * unit.stride * L;
  }
  for_each_strip(context, [&](int row0, int rows) METADNAS_INLINE {
    from.ahead.ask(row0, rows);
    const int pixels = rows * g.out_width;
    const ptrdiff_t pixel = static_cast<ptrdiff_t>(row0) * g.out_width;
    if (need_d) unit_strip(context, unit, packed, scratch.in, row0, rows, scratch.d, plane);
    if (from.z != nullptr) {
      strip_grad_z(context, from, pixel, pixels, scratch.dz, plane);
    } else {
      remade_grad_z(context, unit, packed, from, pixel, pixels, scratch.d, scratch.dz, plane);
    }
    if (from.weight_grad != nullptr) {
      pointwise_weight_grad(scratch.dz, plane, context.layout.blocks, scratch.d, plane,
                            context.in_blocks(unit), pixels,
                            from.weight_grad + context.taps_size(unit));
    }
    if (!from.need_input && !need_taps) return;
    auto scatter = [&]<int MP>(int block, int p0, int valid, Vec<T>(&acc)[MP]) METADNAS_INLINE {
      const int grid = block / context.layout.blocks;  // 1: the shifted half of a factorized reduce
      T* to = target.at(block - grid * context.layout.blocks, row0 * unit.stride + grid, grid);
      unroll<MP>([&]<int p>() METADNAS_INLINE {
        if (p < valid) {
          T* at = to + scratch.targets[p0 + p];
          store(at, unit.factorized() ? load(at) + acc[p] : acc[p]);
        }
      });
    };
    pointwise(scratch.dz, plane, g.channels, packed.transposed, context.in_row(unit), pixels,
              scatter);
  });
  if (!need_taps) return;
  with_depthwise<T>(unit.kernel, unit.dilation, unit.stride, context.layout.out_tile,
                    [&]<int K, int D, int S, int TW>() {
                      for (int block = 0; block < context.layout.blocks; ++block) {
                        depthwise_weight_grad<K, D, S, kGradTile<K, TW>>(
                            scratch.grad_d, scratch.in, block, g.out_height, g.out_width,
                            from.weight_grad + block * K * K * L);
                      }
                    });
}

// Gradient of a unit's (rectified) input from scratch.grad_d, a tile at a time while in registers:
// sink(block, h, w, acc), as depthwise_rows.
template <bool kStuffed, class T, class Sink>
void unit_input_grad(const Unit& unit, const PackedUnit<T>& packed, int tile,
                     const UnitScratch<T>& scratch, Sink&& sink) {
  const PaddedImage<T>& from = scratch.grad_d;
  const DepthwiseRows<T> what{from, packed.flipped, from.width, 0, from.height};
  with_depthwise<T>(unit.kernel, unit.dilation, 1, tile, [&]<int K, int D, int S, int TW>() {
    if constexpr (S == 1) depthwise_rows<K, D, 1, TW, kStuffed>(what, sink);
  });
}

}  // namespace metadnas::METADNAS_ISA
