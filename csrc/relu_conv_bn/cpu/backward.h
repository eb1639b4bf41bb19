// The backward pass: the sums batch norm's gradient needs; then, strip by strip while it is in the
// cache, the gradients of weights and input; then the weight gradients of all tasks added up in a
// fixed order.
#pragma once

#include "relu_conv_bn/cpu/strip.h"
#include "relu_conv_bn/cpu/weights.h"

namespace metadnas::METADNAS_ISA::relu_conv_bn {

// sums: of grad_out, then of grad_out * normal, per channel, over one task.
template <class T>
void gradient_sums_task(const Context<T>& context, const Task& task, const T* grad_out,
                        const T* normal, double* sums) {
  constexpr int L = kLanes<T>;
  constexpr int kPixels = 64;  // added up on their own: a long sum would cost digits
  const int channels = context.shape.out_channels;
  for (int i = 0; i < 2 * channels; ++i) sums[i] = 0;
  for_each_strip(task, kPixels, [&](int64_t begin, int pixels) {
    const ptrdiff_t start = (begin - task.begin) * channels;
    for (int c = 0; c < channels; c += L) {
      const int live = channels - c < L ? channels - c : L;
      const T* g = grad_out + start + c;
      const T* v = normal + start + c;
      Vec<T> s[2] = {}, q[2] = {};
      for (int p = 0; p < pixels; ++p, g += channels, v += channels) {
        const Vec<T> grad = load_first(g, live);
        s[p % 2] += grad;
        q[p % 2] += grad * load_first(v, live);
      }
      s[0] += s[1];
      q[0] += q[1];
      for (int i = 0; i < live; ++i) {
        sums[c + i] += static_cast<double>(s[0][i]);
        sums[channels + c + i] += static_cast<double>(q[0][i]);
      }
    }
  });
}

// What the tasks of one backward pass share.
template <class T>
struct BackwardState {
  PackedWeights<T> weights;
  T* norms;         // per client: NormCoefficients
  T* gradients;     // per client: NormGradientCoefficients
  double* sums;     // per chunk: [grad, grad * normal][channel]; then a row per client
  T* weight_grads;  // per chunk: [grid][grid blocks * lanes][in blocks * lanes]

  static int64_t weight_grad_size(const Context<T>& context) {
    return int64_t{context.shape.grids()} * context.grid_blocks() * context.in_blocks() *
           kLanes<T> * kLanes<T>;
  }
  NormGradientCoefficients<T> gradient(const Context<T>& context, int64_t client) const {
    const int channels = context.shape.out_channels;
    return {channels, gradients + client * NormGradientCoefficients<T>::size(channels)};
  }
};

// grad_z of one strip of one grid, [block][pixel][lane]; the pointers are at the grid's first
// channel of the strip's first pixel.
template <class T>
void strip_grad_z(const Context<T>& context, const NormGradientCoefficients<T>& norm, int grid,
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
  auto epilogue = [&]<int MP>(int block, int p0, int valid, const Vec<T>(&acc)[MP])
                      METADNAS_INLINE {
                        const int live = context.live_in(block);
                        const T* rectified = scratch.in + block * scratch.plane + p0 * kLanes<T>;
                        T* to = grad_x + block * kLanes<T>;
                        unroll<MP>([&]<int p>() METADNAS_INLINE {
                          if (p < valid && offsets.own[p0 + p] != PixelOffsets::kOutside) {
                            store_first(to + offsets.own[p0 + p],
                                        relu_grad(load(rectified + p * kLanes<T>), acc[p]), live);
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
      gather_relu(context, context.x(task.client), pixels, scratch);
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

// One client's coefficients, and the gradients of gamma and beta, from the sums of its chunks.
template <class T>
void close_sums(const Context<T>& context, const BackwardState<T>& state, int64_t client,
                bool summed, T* grad_params) {
  const int channels = context.shape.out_channels;
  const ChunkCut cut = context.cut(client);
  const double* rows = state.sums + client * context.most_chunks() * 2 * channels;
  double* total =
      state.sums + (context.shape.clients * context.most_chunks() + client) * 2 * channels;
  for (int i = 0; i < 2 * channels; ++i) {
    total[i] = 0;
    for (int64_t chunk = 0; summed && chunk < cut.chunks(); ++chunk) {
      total[i] += rows[chunk * 2 * channels + i];
    }
  }
  const NormCoefficients<T> norm = context.norm(state.norms, client);
  context.fill_norm(client, norm);
  state.gradient(context, client)
      .fill(channels, norm, context.args.training ? total : nullptr, cut.pixels);
  if (grad_params == nullptr || !context.args.affine) return;
  T* affine = grad_params + context.shape.weights();
  for (int c = 0; c < channels; ++c) {
    affine[c] = static_cast<T>(total[channels + c]);
    affine[channels + c] = static_cast<T>(total[c]);
  }
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

template <class T>
BackwardState<T> take_state(const Context<T>& context, bool weight_grads) {
  const Shape& shape = context.shape;
  const int channels = shape.out_channels;
  BackwardState<T> state{PackedWeights<T>(shape, Direction::kBackward), nullptr, nullptr, nullptr,
                         nullptr};
  const int64_t chunks = shape.clients * context.most_chunks();
  const int64_t norms = shape.clients * NormCoefficients<T>::size(channels);
  const int64_t gradients = shape.clients * NormGradientCoefficients<T>::size(channels);
  const int64_t sums = (chunks + shape.clients) * 2 * channels;
  const int64_t grads = weight_grads ? chunks * BackwardState<T>::weight_grad_size(context) : 0;
  Arena& arena = call_arena();
  arena.reset(static_cast<size_t>(state.weights.size() + norms + gradients + grads) * sizeof(T) +
              static_cast<size_t>(sums) * sizeof(double) + 5 * 64);
  state.weights.pack(context, arena.take<T>(state.weights.size()));
  state.norms = arena.take<T>(norms);
  state.gradients = arena.take<T>(gradients);
  state.sums = arena.take<double>(sums);
  state.weight_grads = weight_grads ? arena.take<T>(grads) : nullptr;
  return state;
}

template <class T>
void backward(const BackwardArgs<T>& args) {
  const Context<T> context(args);
  const Shape& shape = context.shape;
  const int channels = shape.out_channels;
  const BackwardState<T> state = take_state(context, args.grad_params != nullptr);
  const int64_t row = shape.weights() + (args.affine ? 2 * channels : 0);
  auto grad_params = [&](int64_t client) {
    return args.grad_params ? args.grad_params + client * row : nullptr;
  };
  // Without batch statistics only gamma and beta ask for the sums.
  const bool summed = args.training || (args.affine && args.grad_params);
  if (summed) {
    context.for_each_task([&](const Task& task) {
      const int64_t offset = context.out_offset(task);
      gradient_sums_task(context, task, args.grad_out + offset, args.normal + offset,
                         context.chunk_row(state.sums, task, int64_t{2} * channels));
    });
  }
  parallel_for_each(shape.clients, [&](int64_t client) {
    close_sums(context, state, client, summed, grad_params(client));
  });
  context.for_each_task([&](const Task& task) {
    const int64_t offset = context.out_offset(task);
    gradients_task(
        context, state, task, args.grad_out + offset, args.normal + offset,
        args.grad_x ? args.grad_x + task.client * shape.images * shape.in_image() : nullptr,
        args.grad_params ? context.chunk_row(state.weight_grads, task,
                                             BackwardState<T>::weight_grad_size(context))
                         : nullptr);
  });
  if (args.grad_params == nullptr) return;
  parallel_for_each(shape.clients * channels, [&](int64_t i) {
    const int out = static_cast<int>(i % channels);
    reduce_weight_grad(context, state, i / channels, out,
                       grad_params(i / channels) + int64_t{out} * shape.in_channels);
  });
}

}  // namespace metadnas::METADNAS_ISA::relu_conv_bn
