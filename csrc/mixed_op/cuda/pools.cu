// Pools are cheap to make and made again wherever they are needed.
#include "mixed_op/cuda/moments.cuh"
#include "mixed_op/cuda/pool.cuh"
#include "mixed_op/cuda/pools.h"

namespace metadnas::mixed_op {
namespace {

template <class S, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    moments_kernel(const __grid_constant__ PoolMomentsParams<S> p) {
  using A = Accumulate<S>;
  const TileAt at(p.tiles, p.frame.images, blockIdx.x);
  if (!p.frame.counted(at.image)) return;
  const int channels = p.frame.channels, first = static_cast<int>(blockIdx.y) * p.chunk;
  const int live = min(p.chunk, channels - first), pitch = p.tiles.pixels() + kQuad;
  A* const largest = shared_memory<A>();
  A* const mean = largest + p.chunk * pitch;
  const int groups = p.chunk / V;
  for (int i = thread(); i < groups * p.tiles.pixels(); i += kThreads) {
    const int c = i % groups * V, pixel = i / groups;
    const int row = pixel / p.tiles.width, column = pixel % p.tiles.width;
    if (c >= live) continue;
    Pooled<A, V> pooled{};
    if (at.holds(row, column)) {
      pooled = pool_pixel<V>(p.x.at(at.image) + first + c, p.x.pitch, p.shape, at.row + row,
                             at.column + column);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      largest[(c + j) * pitch + pixel] = pooled.largest[j];
      mean[(c + j) * pitch + pixel] = pooled.mean[j];
    }
  }
  __syncthreads();
  A* to = p.moments + int64_t{blockIdx.x} * p.partials * 2 * channels + first;
  const auto write = [&](int partial, const A* values) {
    if (partial == kAbsent) return;
    tile_moments(p.tiles, at, values, pitch, live, to + partial * 2 * channels, channels);
  };
  write(p.max_partial, largest);
  write(p.avg_partial, mean);
}

// One edge's part of the gradient of a pooled value, V channels.
template <class S, int V>
__device__ __forceinline__ void add_gradient(const Frame<S>& frame, int64_t client, int norm,
                                             int channel, const Accumulate<S> (&grad)[V],
                                             const Accumulate<S> (&value)[V],
                                             Accumulate<S> (&to)[V]) {
  const auto* mean = frame.norm(client, norm) + channel;
  const auto* gradient = frame.gradient(client, norm) + channel;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    to[i] += gradient[i] * grad[i] + (gradient[kSlope * frame.channels + i] * (value[i] - mean[i]) +
                                      gradient[kShift * frame.channels + i]);
  }
}

template <class S, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    gradient_kernel(const __grid_constant__ PoolGradientParams<S> p) {
  using A = Accumulate<S>;
  const int groups = p.frame.channels / V;
  const int64_t i = int64_t{blockIdx.x} * kThreads + thread();
  const int64_t pixels = int64_t{p.out_height} * p.out_width;
  const int64_t at = i / groups;  // pixel of all images
  const int64_t image = at / pixels;
  if (image >= p.frame.clients * p.frame.images || !p.frame.counted(image)) return;
  const int64_t client = image / p.frame.images;
  const int channel = static_cast<int>(i % groups) * V, pixel = static_cast<int>(at % pixels);
  const auto pooled = pool_pixel<V>(p.x.at(image) + channel, p.x.pitch, p.shape,
                                    pixel / p.out_width, pixel % p.out_width);
  A to_max[V] = {}, to_mean[V] = {};
  for (int e = 0; e < p.edges; ++e) {
    const auto& edge = p.edge[e];
    A grad[V];
    load<V>(edge.grad.at(image) + pixel * edge.grad.pitch + channel, grad);
    if (edge.max_norm != kAbsent) {
      add_gradient<S, V>(p.frame, client, edge.max_norm, channel, grad, pooled.largest, to_max);
    }
    if (edge.avg_norm != kAbsent) {
      add_gradient<S, V>(p.frame, client, edge.avg_norm, channel, grad, pooled.mean, to_mean);
    }
  }
  Pack<unsigned char, V> winner;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    to_mean[j] *= pooled.share;
    winner.of[j] = static_cast<unsigned char>(pooled.winner[j]);
  }
  const int64_t to = at * p.frame.channels + channel;
  store<V>(p.to.to_max + to, to_max);
  store<V>(p.to.to_mean + to, to_mean);
  *reinterpret_cast<Pack<unsigned char, V>*>(p.to.winner + to) = winner;
}

template <class S, int V>
void launch_moments(const PoolMomentsParams<S>& p, Stream stream) {
  const dim3 grid(grid_size(p.frame.clients * p.frame.images * p.tiles.count()),
                  grid_size(ceil_div(p.frame.channels, p.chunk)));
  const int values = 2 * p.chunk * (p.tiles.pixels() + kQuad);
  launch(moments_kernel<S, V>, grid, kThreads, values * sizeof(Accumulate<S>), stream, p);
}

template <class S, int V>
void launch_gradient(const PoolGradientParams<S>& p, Stream stream) {
  const int64_t threads =
      p.frame.clients * p.frame.images * p.out_height * p.out_width * (p.frame.channels / V);
  launch(gradient_kernel<S, V>, grid_size(ceil_div(threads, kThreads)), kThreads, 0, stream, p);
}

}  // namespace

int pool_chunk(int channels) {
  int chunk = 4;  // as wide as a vector
  while (chunk < channels && chunk < 32) chunk *= 2;
  return chunk;
}

template <class S>
void pool_moments(const PoolMomentsParams<S>& p, int vector, Stream stream) {
  vector == 1 ? launch_moments<S, 1>(p, stream) : launch_moments<S, 4>(p, stream);
}

template <class S>
void pool_gradient(const PoolGradientParams<S>& p, int vector, Stream stream) {
  vector == 1 ? launch_gradient<S, 1>(p, stream) : launch_gradient<S, 4>(p, stream);
}

template void pool_moments(const PoolMomentsParams<float>&, int, Stream);
template void pool_moments(const PoolMomentsParams<double>&, int, Stream);
template void pool_moments(const PoolMomentsParams<__nv_bfloat16>&, int, Stream);
template void pool_moments(const PoolMomentsParams<__half>&, int, Stream);
template void pool_gradient(const PoolGradientParams<float>&, int, Stream);
template void pool_gradient(const PoolGradientParams<double>&, int, Stream);
template void pool_gradient(const PoolGradientParams<__nv_bfloat16>&, int, Stream);
template void pool_gradient(const PoolGradientParams<__half>&, int, Stream);

}  // namespace metadnas::mixed_op
