// Pools are cheap to make and made again wherever they are needed.
#include "mixed_op/cuda/moments.cuh"
#include "mixed_op/cuda/pool.cuh"
#include "mixed_op/cuda/pools.h"
#include "mixed_op/cuda/walk.cuh"

namespace metadnas::mixed_op {
namespace {

template <class S, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    moments_kernel(const __grid_constant__ PoolMomentsParams<S> p) {
  using A = Accumulate<S>;
  const TileAt at = TileAt::of_block(p.tiles, p.frame.images);
  if (!p.frame.counted(at.client, at.image)) return;
  const int channels = p.frame.channels, first = static_cast<int>(blockIdx.y) * p.chunk;
  const int live = min(p.chunk.value, channels - first), pitch = p.tiles.pixels() + kQuad;
  A* const largest = shared_memory<A>();
  A* const mean = largest + p.chunk * pitch;
  for (int i = thread() * V; i < p.chunk * p.tiles.pixels(); i += kThreads * V) {
    const int c = i % p.chunk, pixel = i / p.chunk;
    const int row = pixel / p.tiles.width, column = pixel % p.tiles.width;
    if (c >= live) continue;
    Pooled<A, V> pooled{};
    if (at.holds(row, column)) {
      pooled = pool_pixel<V>(p.x.at(at.image) + first + c, p.x.pitch, p.shape, at.row() + row,
                             at.column() + column);
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
__device__ __forceinline__ void add_gradient(const Frame<S>& frame, const Walk<V>& walk, int norm,
                                             const Accumulate<S> (&grad)[V],
                                             const Accumulate<S> (&value)[V],
                                             Accumulate<S> (&to)[V]) {
  const auto* gradient = frame.gradient(walk.client, norm) + walk.channel;
  Accumulate<S> mean[V], scale[V], slope[V], shift[V];
  load<V>(frame.norm(walk.client, norm) + walk.channel, mean);
  load<V>(gradient + kScale * frame.channels, scale);
  load<V>(gradient + kSlope * frame.channels, slope);
  load<V>(gradient + kShift * frame.channels, shift);
#pragma unroll
  for (int i = 0; i < V; ++i) {
    to[i] += scale[i] * grad[i] + (slope[i] * (value[i] - mean[i]) + shift[i]);
  }
}

template <class S, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    gradient_kernel(const __grid_constant__ PoolGradientParams<S> p) {
  using A = Accumulate<S>;
  const Walk<V> walk(p.walk, p.frame);
  const int pixel = walk.piece * walk.lanes + walk.lane;
  if (!walk.live || pixel >= p.out_height * p.out_width ||
      !p.frame.counted(walk.client, walk.image))
    return;
  const auto pooled = pool_pixel<V>(p.x.at(walk.image) + walk.channel, p.x.pitch, p.shape,
                                    pixel / p.out_width, pixel % p.out_width);
  A to_max[V] = {}, to_mean[V] = {};
  for (int e = 0; e < p.edges; ++e) {
    const auto& edge = p.edge[e];
    A grad[V];
    load<V>(edge.grad.at(walk.image) + pixel * edge.grad.pitch + walk.channel, grad);
    if (edge.max_norm != kAbsent) {
      add_gradient<S, V>(p.frame, walk, edge.max_norm, grad, pooled.largest, to_max);
    }
    if (edge.avg_norm != kAbsent) {
      add_gradient<S, V>(p.frame, walk, edge.avg_norm, grad, pooled.mean, to_mean);
    }
  }
  Pack<unsigned char, V> winner;
#pragma unroll
  for (int j = 0; j < V; ++j) {
    to_mean[j] *= pooled.share;
    winner.of[j] = static_cast<unsigned char>(pooled.winner[j]);
  }
  const int64_t to =
      (walk.image * p.out_height * p.out_width + pixel) * p.frame.channels + walk.channel;
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
  launch(gradient_kernel<S, V>, walk_grid(p.walk, p.frame, 1), kThreads, 0, stream, p);
}

}  // namespace

int pool_chunk(int channels) {
  int chunk = 4;  // as wide as a vector
  while (chunk < channels && chunk < 32) chunk *= 2;
  return chunk;
}

WalkCut cut_pool_gradient(const Geometry& geometry, int vector) {
  return cut_walk(geometry, vector, 1);
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
