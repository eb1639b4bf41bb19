// Backward, first pass: the sums that batch norm's gradient and those of gamma and beta need.
#include <cmath>

#include "relu_conv_bn/cuda/channel_sums.cuh"
#include "relu_conv_bn/cuda/kernels.h"
#include "relu_conv_bn/cuda/tile.cuh"

namespace metadnas::relu_conv_bn {
namespace {

constexpr int kChannels = 16;
constexpr int kLanes = 16;
constexpr int kThreads = kChannels * kLanes;

template <class T, class S>
struct Sums {
  BackwardArgs<T, S> args;
  int64_t chunks;  // of a client: sums are [client][chunk][grad, grad * normal][channel]
  int channel_tiles;
  double* sums;
  T* coefficients;
};

// A block adds up the pixels of one chunk for 16 channels: each thread some in T, few enough to
// lose no digits, then all of them in double.
template <class T, class S>
__global__ void __launch_bounds__(kThreads) chunk_sums_kernel(Sums<T, S> p) {
  __shared__ double scratch[2][kLanes][kChannels];
  const int channels = p.args.shape.out_channels;
  const int lane = threadIdx.x / kChannels, own = threadIdx.x % kChannels;
  const int channel = static_cast<int>(blockIdx.x % p.channel_tiles) * kChannels + own;
  const int64_t row = blockIdx.x / p.channel_tiles;  // [client][chunk]
  const int64_t client = row / p.chunks;
  const int64_t begin = row % p.chunks * kSumPixels;
  const int64_t end = min(begin + kSumPixels, counted_pixels(p.args, client));
  const int64_t start = client * all_pixels(p.args) * channels + channel;
  T grad = 0, product = 0;
#pragma unroll 4
  for (int64_t pixel = begin + lane; pixel < end; pixel += kLanes) {
    if (channel >= channels) continue;
    const T g = cuda::loaded(p.args.grad_out[start + pixel * channels]);
    grad += g;
    product += g * cuda::loaded(p.args.normal[start + pixel * channels]);
  }
  scratch[0][lane][own] = static_cast<double>(grad);
  scratch[1][lane][own] = static_cast<double>(product);
  __syncthreads();
  if (lane >= 2 || channel >= channels) return;
  double sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += scratch[lane][i][own];
  p.sums[(row * 2 + lane) * channels + channel] = sum;
}

// A block takes one client's next 32 channels.
template <class T, class S>
__global__ void __launch_bounds__(ChannelSums::kThreads) close_sums_kernel(Sums<T, S> p) {
  __shared__ double scratch[ChannelSums::kLanes][ChannelSums::kChannels];
  const ChannelSums sums{scratch};
  const Shape& shape = p.args.shape;
  const int channels = shape.out_channels;
  const int64_t client = blockIdx.x;
  const int channel = static_cast<int>(blockIdx.y) * ChannelSums::kChannels + sums.channel();
  const bool live = channel < channels;
  const int64_t pixels = counted_pixels(p.args, client);
  const int64_t chunks = ceil_div(pixels, kSumPixels);
  const double* from = p.sums + client * p.chunks * 2 * channels + (live ? channel : 0);
  const double grad = sums.of(chunks, [&](int64_t i) { return from[i * 2 * channels]; });
  const double product = sums.of(chunks, [&](int64_t i) { return from[(i * 2 + 1) * channels]; });
  if (!live || sums.lane() != 0) return;
  const T* affine = p.args.params + client * p.args.params_stride + shape.weights();
  const double gamma = p.args.affine ? static_cast<double>(affine[channel]) : 1;
  const double variance = static_cast<double>(p.args.stats[(client * 2 + 1) * channels + channel]);
  const double scale = gamma / std::sqrt(variance + p.args.eps);
  const bool batch = p.args.training && pixels > 0;
  const double n = static_cast<double>(pixels);
  T* to = p.coefficients + client * 3 * channels + channel;
  to[0] = static_cast<T>(scale);
  to[channels] = batch ? static_cast<T>(-scale * product / n) : T{0};
  to[2 * channels] = batch ? static_cast<T>(-scale * grad / n) : T{0};
  if (p.args.grad_params == nullptr || !p.args.affine) return;
  T* out = p.args.grad_params + client * (shape.weights() + 2 * channels) + shape.weights();
  out[channel] = static_cast<T>(product);
  out[channels + channel] = static_cast<T>(grad);
}

}  // namespace

template <class T, class S>
void gradient_sums(const BackwardArgs<T, S>& args, double* sums, T* coefficients,
                   cuda::Stream stream) {
  const Shape& shape = args.shape;
  const int64_t chunks = ceil_div(shape.images * shape.out_pixels(), kSumPixels);
  const int tiles = ceil_div(shape.out_channels, kChannels);
  const Sums<T, S> params{args, chunks, tiles, sums, coefficients};
  cuda::launch(chunk_sums_kernel<T, S>, cuda::grid_size(shape.clients * chunks * tiles), kThreads,
               0, stream, params);
  const dim3 grid(cuda::grid_size(shape.clients),
                  cuda::grid_size(ceil_div(shape.out_channels, ChannelSums::kChannels)));
  cuda::launch(close_sums_kernel<T, S>, grid, ChannelSums::kThreads, 0, stream, params);
}

template void gradient_sums(const BackwardArgs<float, float>&, double*, float*, cuda::Stream);
template void gradient_sums(const BackwardArgs<double, double>&, double*, double*, cuda::Stream);
template void gradient_sums(const BackwardArgs<float, __nv_bfloat16>&, double*, float*,
                            cuda::Stream);
template void gradient_sums(const BackwardArgs<float, __half>&, double*, float*, cuda::Stream);

}  // namespace metadnas::relu_conv_bn
