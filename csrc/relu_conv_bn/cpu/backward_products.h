// Backward, second pass: the gradients of weights and input, strip by strip while gradient and
// input are in the cache; then the weight gradients of all tasks added up in a fixed order.
#pragma once

#include "relu_conv_bn/cpu/backward_state.h"
#include "relu_conv_bn/cpu/strip.h"

namespace metadnas::METADNAS_ISA::relu_conv_bn {

// grad_z of one strip of one grid, [block][pixel][lane]; the pointers are at the grid's first
// channel of the strip's first pixel.
template <class T>
void strip_grad_z(const Context<T>& context, const NormGradient<T>& norm, int grid,
                  const T* grad_out, const T* normal, int pixels, const StripScratch<T>& to) {
  constexpr int L = kLanes<T>;
  const Shape& shape = context.shape;
  for (int block = 0; block < context.grid_blocks(); ++block) {
    const int live = context.live_out(block);
    const int c = grid * shape.grid_channels() + block * L;
    const Vec<T> scale = load(norm.scale + c);
    const Vec<T> slope = load(norm.slope + c), shift = load(norm.shift + c);
    T* strip = to.grad_z + block * to.plane;
    for (int p = 0; p < pixels; ++p) {
      const ptrdiff_t at = static_cast<ptrdiff_t>(p) * shape.out_channels + block * L;
      Vec<T> grad = scale * load_first(grad_out + at, live);
      // Constant statistics: a NaN in `normal` is none of this gradient's business.
      if (context.args.training) grad += slope * load_first(normal + at, live) + shift;
      store(strip + p * L, grad);
    }
  }
}

// grad_x at the strip's own pixels; zeros at the pixels no grid reads.
template <class T>
void strip_grad_x(const Context<T>& context, const PanelMatrix<T>& weights, int pixels,
                  const StripScratch<T>& scratch, T* grad_x) {
  const Shape& shape = context.shape;
  const PixelOffsets& offsets = scratch.offsets;
  const bool relu = context.args.relu;
  auto epilogue = [&]<int MP>(int block, int p0, int valid, Vec<T>(&acc)[MP]) METADNAS_INLINE {
    const int live = context.live_in(block);
    const T* rectified = scratch.in + block * scratch.plane + p0 * kLanes<T>;
    T* to = grad_x + block * kLanes<T>;
    unroll<MP>([&]<int p>() METADNAS_INLINE {
      if (p < valid && offsets.own[p0 + p] != PixelOffsets::kOutside) {
        const Vec<T> in = load(rectified + p * kLanes<T>);
        store_first(to + offsets.own[p0 + p], relu ? relu_grad(in, acc[p]) : acc[p], live);
      }
    });
  };
  strip_product(scratch.grad_z, scratch.plane, weights, pixels, epilogue);
  for (int p = 0; p < pixels && shape.stride == 2; ++p) {
    if (offsets.rest[p] == PixelOffsets::kOutside) continue;
    __builtin_memset(grad_x + offsets.rest[p], 0,
                     static_cast<size_t>(shape.in_channels) * sizeof(T));
  }
}

// Both gradients of one task. grad_x: the client's, or null; weight_grad: the task's own, or null.
template <class T>
void gradients_task(const Context<T>& context, const BackwardState<T>& state, const Task& task,
                    const T* grad_out, const T* normal, T* grad_x, T* weight_grad) {
  const Shape& shape = context.shape;
  const StripScratch<T> scratch(context);
  const int64_t grid_size = BackwardState<T>::weight_grad_size(context) / shape.grids();
  if (weight_grad) {
    __builtin_memset(weight_grad, 0, static_cast<size_t>(grid_size * shape.grids()) * sizeof(T));
  }
  for_each_strip(task, scratch.pixels, [&](int64_t begin, int pixels) {
    for (int grid = 0; grid < shape.grids(); ++grid) {
      const ptrdiff_t start =
          (begin - task.begin) * shape.out_channels + grid * shape.grid_channels();
      scratch.offsets.fill(shape, grid, begin, pixels);
      gather(context, context.x(task.client), pixels, scratch);
      strip_grad_z(context, state.gradient(context, task.client), grid, grad_out + start,
                   normal + start, pixels, scratch);
      if (weight_grad) {
        strip_outer(scratch.grad_z, scratch.plane, context.grid_blocks(), scratch.in, scratch.plane,
                    context.in_blocks(), pixels, weight_grad + grid * grid_size);
      }
      if (grad_x) {
        strip_grad_x(context, state.weights.of(task.client, grid), pixels, scratch, grad_x);
      }
    }
  });
}

// One row (Cin) of one client's weight gradient: its chunks' rows in chunk order.
template <class T>
void reduce_weight_grad(const Context<T>& context, const BackwardState<T>& state, int64_t client,
                        int out, T* grad) {
  constexpr int L = kLanes<T>;
  constexpr int kColumns = 64;
  const Shape& shape = context.shape;
  const int64_t size = BackwardState<T>::weight_grad_size(context);
  const int64_t row = int64_t{context.in_blocks()} * L;
  const int grid = out / shape.grid_channels();
  const int64_t at =
      (int64_t{grid} * context.grid_blocks() * L + out % shape.grid_channels()) * row;
  const T* from = state.weight_grads + client * context.most_chunks() * size + at;
  const int64_t chunks = context.cut(client).chunks();
  for (int c0 = 0; c0 < shape.in_channels; c0 += kColumns) {
    const int width = shape.in_channels - c0 < kColumns ? shape.in_channels - c0 : kColumns;
    double total[kColumns] = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      for (int c = 0; c < width; ++c) {
        total[c] += static_cast<double>(from[chunk * size + c0 + c]);
      }
    }
    for (int c = 0; c < width; ++c) grad[c0 + c] = static_cast<T>(total[c]);
  }
}

}  // namespace metadnas::METADNAS_ISA::relu_conv_bn
