// The forward pass: products with the moments of batch norm taken while results are in registers,
// then normalisation in place.
#pragma once

#include "relu_conv_bn/cpu/strip.h"
#include "relu_conv_bn/cpu/weights.h"

namespace metadnas::METADNAS_ISA::relu_conv_bn {

// z of one task, and its moments [mean, M2][channel].
template <class T>
void product_task(const Context<T>& context, const Task& task, const PackedWeights<T>& weights,
                  T* z, double* partial) {
  constexpr int L = kLanes<T>;
  const Shape& shape = context.shape;
  const StripScratch<T> scratch(context);
  const T* x = context.x(task.client);
  for (int i = 0; i < shape.grids() * context.grid_blocks(); ++i) {
    scratch.moments[i] = ChunkMoments<T>{};
  }
  for_each_strip(task, scratch.pixels, [&](int64_t begin, int pixels) {
    for (int grid = 0; grid < shape.grids(); ++grid) {
      scratch.offsets.fill(shape, grid, begin, pixels);
      gather(context, x, pixels, scratch);
      T* strip = z + (begin - task.begin) * shape.out_channels + grid * shape.grid_channels();
      auto epilogue = [&]<int MP>(int block, int p0, int valid, Vec<T>(&acc)[MP]) METADNAS_INLINE {
        const int live = context.live_out(block);
        T* to = strip + static_cast<ptrdiff_t>(p0) * shape.out_channels + block * L;
        ChunkMoments<T>& moments = scratch.moments[grid * context.grid_blocks() + block];
        if (begin == task.begin && p0 == 0) moments.shift = acc[0];
        auto use = [&]<bool kAll>() METADNAS_INLINE {
          unroll<MP>([&]<int p>() METADNAS_INLINE {
            if (kAll || p < valid) {
              store_first(to + static_cast<ptrdiff_t>(p) * shape.out_channels, acc[p],
                          kAll ? L : live);
            }
          });
          moments.template add<kAll>(acc, valid);
        };
        if (valid == MP && live == L) {
          use.template operator()<true>();
        } else {
          use.template operator()<false>();
        }
      };
      strip_product(scratch.in, scratch.plane, weights.of(task.client, grid), pixels, epilogue);
    }
  });
  for (int grid = 0; grid < shape.grids(); ++grid) {
    for (int block = 0; block < context.grid_blocks(); ++block) {
      double* mean = partial + grid * shape.grid_channels() + block * L;
      scratch.moments[grid * context.grid_blocks() + block].finish(
          task.end - task.begin, context.live_out(block), mean, mean + shape.out_channels);
    }
  }
}

// z of one task becomes normal in place, and out.
template <class T>
void normalise_task(const Context<T>& context, const Task& task, const NormVectors<T>& norm,
                    T* normal, T* out) {
  constexpr int L = kLanes<T>;
  const int channels = context.shape.out_channels;
  const bool affine = context.args.affine;
  for (int64_t p = task.begin; p < task.end; ++p, normal += channels, out += channels) {
    for (int c = 0; c < channels; c += L) {
      const int live = channels - c < L ? channels - c : L;
      const Vec<T> v =
          (load_first(normal + c, live) - load(norm.mean + c)) * load(norm.inverse + c);
      store_first(normal + c, v, live);
      if (affine) store_first(out + c, load(norm.gamma + c) * v + load(norm.beta + c), live);
    }
  }
}

template <class T>
void forward(const ForwardArgs<T>& args) {
  const Context<T> context(args);
  const Shape& shape = context.shape;
  const int channels = shape.out_channels;
  PackedWeights<T> weights(shape, Direction::kForward);
  const int64_t norm_size = shape.clients * NormVectors<T>::size(context.norm_row());
  const int64_t partial_size = shape.clients * context.most_chunks() * 2 * channels;
  Arena& arena = call_arena();
  arena.reset(static_cast<size_t>(weights.size() + norm_size) * sizeof(T) +
              static_cast<size_t>(partial_size) * sizeof(double) + 3 * 64);
  weights.pack(context, arena.take<T>(weights.size()));
  T* norms = arena.take<T>(norm_size);
  double* partial = arena.take<double>(partial_size);

  context.for_each_task([&](const Task& task) {
    product_task(context, task, weights, args.normal + context.out_offset(task),
                 context.chunk_row(partial, task, int64_t{2} * channels));
  });
  parallel_for_each(shape.clients, [&](int64_t client) {
    T* stats = context.stats(client);
    if (args.training) {
      merge_moments(context.cut(client), partial + client * context.most_chunks() * 2 * channels,
                    int64_t{2} * channels, channels, stats, stats + channels);
    }
    context.fill_norm(client, context.norm(norms, client));
  });
  context.for_each_task([&](const Task& task) {
    const int64_t offset = context.out_offset(task);
    normalise_task(context, task, context.norm(norms, task.client), args.normal + offset,
                   args.out + offset);
  });
}

}  // namespace metadnas::METADNAS_ISA::relu_conv_bn
