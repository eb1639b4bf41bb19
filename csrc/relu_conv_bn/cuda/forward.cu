// The forward pass. The product is made twice: for batch norm's moments, and again to be normalised
// on its way to memory. Input is read once more, but the result before normalisation never is, and
// keeps every digit where activations are of half precision.
#include <cmath>

#include "relu_conv_bn/cuda/channel_sums.cuh"
#include "relu_conv_bn/cuda/kernels.h"
#include "relu_conv_bn/cuda/tile.cuh"

namespace metadnas::relu_conv_bn {
namespace {

template <class T, int kColumns>
using Tile = cuda::TileProduct<T, kTilePixels, kColumns>;

template <class T, int kColumns>
struct Shared {
  typename Tile<T, kColumns>::Shared product;
  int64_t own[kTilePixels];  // offsets of inputs
};

// Results of this block's pixels and channels, zeros at pixels from `live` on.
template <int kColumns, class T, class S>
__device__ __forceinline__ Tile<T, kColumns> product_tile(const Args<T, S>& args,
                                                          const Place& place, int live,
                                                          Shared<T, kColumns>& shared) {
  using Own = Tile<T, kColumns>;
  const Shape& shape = args.shape;
  Own tile;
  if (live == 0) return tile;  // for the whole block
  for (int i = threadIdx.x; i < live; i += Own::kThreads) {
    shared.own[i] = Offsets::of(shape, place.grid, place.tile * kTilePixels + i).own;
  }
  __syncthreads();
  const S* x = args.x + place.client * shape.images * shape.in_image();
  const int first = place.column_tile * kColumns;
  const T* weights = args.params + place.client * args.params_stride +
                     int64_t{place.grid * shape.grid_channels() + first} * shape.in_channels;
  tile.template add<cuda::Along::kDepth, cuda::Along::kDepth>(
      shared.product, shape.in_channels,
      [&](int row, int64_t k) {
        if (row >= live || shared.own[row] == Offsets::kOutside) return T{0};
        const T v = cuda::loaded(x[shared.own[row] + k]);
        return args.relu ? cuda::relu(v) : v;
      },
      [&](int64_t k, int column) {
        return first + column < shape.grid_channels() ? weights[column * shape.in_channels + k]
                                                      : T{0};
      });
  return tile;
}

template <class T, class S>
struct Moments {
  Args<T, S> args;
  Cut cut;
  double* to;
};

// Sum over the tile's live rows of value(r, c), per column: this thread's four, the same in all
// threads of these columns.
template <class Own, class T, class Value>
__device__ __forceinline__ void column_sums(T (*scratch)[Own::kColumns], int live, Value&& value,
                                            T (&sums)[Own::kEach]) {
  constexpr int kRowThreads = Own::kRows / Own::kEach;
  __syncthreads();
#pragma unroll
  for (int c = 0; c < Own::kEach; ++c) {
    T sum = 0;
#pragma unroll
    for (int r = 0; r < Own::kEach; ++r) sum += Own::row() + r < live ? value(r, c) : T{0};
    scratch[Own::row() / Own::kEach][Own::column() + c] = sum;
  }
  __syncthreads();
#pragma unroll
  for (int c = 0; c < Own::kEach; ++c) {
    sums[c] = 0;
    for (int i = 0; i < kRowThreads; ++i) sums[c] += scratch[i][Own::column() + c];
  }
}

template <int kColumns, class T, class S>
__global__ void __launch_bounds__(Tile<T, kColumns>::kThreads, Tile<T, kColumns>::kBlocks)
    moments_kernel(Moments<T, S> p) {
  using Own = Tile<T, kColumns>;
  auto& shared = *cuda::shared_memory<Shared<T, kColumns>>();
  const Shape& shape = p.args.shape;
  const Place place(p.cut);
  const int live = pixels_before(counted_pixels(p.args, place.client), place.tile);
  if (live == 0) return;  // of the whole block
  const Own tile = product_tile<kColumns>(p.args, place, live, shared);
  auto* scratch = reinterpret_cast<T(*)[kColumns]>(&shared.product);
  static_assert(sizeof(shared.product) >= Own::kRows / Own::kEach * kColumns * sizeof(T));
  T mean[Own::kEach], rest[Own::kEach], squares[Own::kEach];
  column_sums<Own>(scratch, live, [&](int r, int c) { return tile.sums[r][c]; }, mean);
#pragma unroll
  for (int c = 0; c < Own::kEach; ++c) mean[c] /= static_cast<T>(live);
  const auto deviation = [&](int r, int c) { return tile.sums[r][c] - mean[c]; };
  const auto square = [&](int r, int c) { return deviation(r, c) * deviation(r, c); };
  column_sums<Own>(scratch, live, deviation, rest);  // what rounding took from the mean
  column_sums<Own>(scratch, live, square, squares);
  if (Own::row() != 0) return;
  const double n = live;
  double* to = p.to + (place.client * p.cut.pixel_tiles + place.tile) * 2 * shape.out_channels;
#pragma unroll
  for (int c = 0; c < Own::kEach; ++c) {
    const int column = place.column_tile * kColumns + Own::column() + c;
    if (column >= shape.grid_channels()) continue;
    const int channel = place.grid * shape.grid_channels() + column;
    const double off = static_cast<double>(rest[c]) / n;
    to[channel] = static_cast<double>(mean[c]) + off;
    to[shape.out_channels + channel] = static_cast<double>(squares[c]) - n * off * off;
  }
}

// Chan's formula for all tiles at once: a block takes one client's next 32 channels.
template <class T, class S>
__global__ void __launch_bounds__(ChannelSums::kThreads) merge_moments_kernel(Moments<T, S> p) {
  __shared__ double scratch[ChannelSums::kLanes][ChannelSums::kChannels];
  const ChannelSums sums{scratch};
  const int64_t client = blockIdx.x;
  const int channels = p.args.shape.out_channels;
  const int channel = static_cast<int>(blockIdx.y) * ChannelSums::kChannels + sums.channel();
  const bool live = channel < channels;
  const int64_t pixels = counted_pixels(p.args, client);
  const int64_t tiles = ceil_div(pixels, kTilePixels);
  const double* from = p.to + client * p.cut.pixel_tiles * 2 * channels + (live ? channel : 0);
  const auto mean_of = [&](int64_t tile) { return from[tile * 2 * channels]; };
  const auto count_of = [&](int64_t tile) {
    return static_cast<double>(pixels_before(pixels, tile));
  };
  const double n = pixels == 0 ? 1 : static_cast<double>(pixels);
  const double mean = sums.of(tiles, [&](int64_t i) { return count_of(i) * mean_of(i); }) / n;
  const double m2 = sums.of(tiles, [&](int64_t i) {
    const double d = mean_of(i) - mean;
    return from[(i * 2 + 1) * channels] + count_of(i) * d * d;
  });
  if (!live || sums.lane() != 0) return;
  T* stats = p.args.stats + client * 2 * channels;
  stats[channel] = static_cast<T>(mean);
  stats[channels + channel] = static_cast<T>(m2 / n);
}

template <class T, class S>
struct Normalise {
  ForwardArgs<T, S> args;
  Cut cut;
};

template <class T, int kColumns>
struct NormaliseShared : Shared<T, kColumns> {
  T mean[kColumns];
  T inverse[kColumns];  // 1 / sqrt(variance + eps)
  T gamma[kColumns];
  T beta[kColumns];
};

// Batch norm of the block's channels.
template <int kColumns, class T, class S>
__device__ __forceinline__ void fill_norm(const Args<T, S>& args, const Place& place,
                                          NormaliseShared<T, kColumns>& to) {
  const Shape& shape = args.shape;
  const int first = place.grid * shape.grid_channels() + place.column_tile * kColumns;
  const T* stats = args.stats + place.client * 2 * shape.out_channels + first;
  const T* affine = args.params + place.client * args.params_stride + shape.weights() + first;
  const int columns = min(kColumns, shape.grid_channels() - place.column_tile * kColumns);
  for (int c = threadIdx.x; c < columns; c += blockDim.x) {
    const double variance = static_cast<double>(stats[shape.out_channels + c]);
    to.mean[c] = stats[c];
    to.inverse[c] = static_cast<T>(1 / std::sqrt(variance + args.eps));
    to.gamma[c] = args.affine ? affine[c] : T{1};
    to.beta[c] = args.affine ? affine[shape.out_channels + c] : T{0};
  }
}

template <int kColumns, class T, class S>
__global__ void __launch_bounds__(Tile<T, kColumns>::kThreads, Tile<T, kColumns>::kBlocks)
    normalised_kernel(Normalise<T, S> p) {
  using Own = Tile<T, kColumns>;
  auto& shared = *cuda::shared_memory<NormaliseShared<T, kColumns>>();
  const Shape& shape = p.args.shape;
  const Place place(p.cut);
  const int live = pixels_before(counted_pixels(p.args, place.client), place.tile);
  const int present = pixels_before(all_pixels(p.args), place.tile);
  fill_norm(p.args, place, shared);
  const Own tile = product_tile<kColumns>(p.args, place, live, shared);  // waits for all threads
  const int64_t pixel = place.client * all_pixels(p.args) + place.tile * kTilePixels;
#pragma unroll
  for (int c = 0; c < Own::kEach; ++c) {
    const int own = Own::column() + c;
    const int column = place.column_tile * kColumns + own;
    if (column >= shape.grid_channels()) continue;
    const int64_t start = pixel * shape.out_channels + place.grid * shape.grid_channels() + column;
#pragma unroll
    for (int r = 0; r < Own::kEach; ++r) {
      const int row = Own::row() + r;
      if (row >= present) continue;
      const int64_t at = start + int64_t{row} * shape.out_channels;
      const bool counts = row < live;
      const T normal = (tile.sums[r][c] - shared.mean[own]) * shared.inverse[own];
      const T out = p.args.affine ? shared.gamma[own] * normal + shared.beta[own] : normal;
      if (p.args.affine) p.args.normal[at] = cuda::Stored<S>::of(counts ? normal : T{0});
      p.args.out[at] = cuda::Stored<S>::of(counts ? out : T{0});
    }
  }
}

}  // namespace

template <class T, class S>
void batch_statistics(const Args<T, S>& args, double* moments, cuda::Stream stream) {
  const Shape& shape = args.shape;
  with_columns<T>(shape.grid_channels(), [&]<int kColumns>() {
    const Cut cut = cut_for<kColumns>(shape, shape.grid_channels());
    cuda::launch(moments_kernel<kColumns, T, S>, cuda::grid_size(cut.blocks(shape.clients)),
                 Tile<T, kColumns>::kThreads, sizeof(Shared<T, kColumns>), stream,
                 {args, cut, moments});
  });
  const dim3 grid(cuda::grid_size(shape.clients),
                  cuda::grid_size(ceil_div(shape.out_channels, ChannelSums::kChannels)));
  cuda::launch(merge_moments_kernel<T, S>, grid, ChannelSums::kThreads, 0, stream,
               {args, cut_for<16>(shape, shape.grid_channels()), moments});
}

template <class T, class S>
void normalised_product(const ForwardArgs<T, S>& args, cuda::Stream stream) {
  const Shape& shape = args.shape;
  with_columns<T>(shape.grid_channels(), [&]<int kColumns>() {
    const Cut cut = cut_for<kColumns>(shape, shape.grid_channels());
    cuda::launch(normalised_kernel<kColumns, T, S>, cuda::grid_size(cut.blocks(shape.clients)),
                 Tile<T, kColumns>::kThreads, sizeof(NormaliseShared<T, kColumns>), stream,
                 {args, cut});
  });
}

template void batch_statistics(const Args<float, float>&, double*, cuda::Stream);
template void normalised_product(const ForwardArgs<float, float>&, cuda::Stream);
template void batch_statistics(const Args<double, double>&, double*, cuda::Stream);
template void normalised_product(const ForwardArgs<double, double>&, cuda::Stream);
template void batch_statistics(const Args<float, __nv_bfloat16>&, double*, cuda::Stream);
template void normalised_product(const ForwardArgs<float, __nv_bfloat16>&, cuda::Stream);
template void batch_statistics(const Args<float, __half>&, double*, cuda::Stream);
template void normalised_product(const ForwardArgs<float, __half>&, cuda::Stream);

}  // namespace metadnas::relu_conv_bn
