// What every kernel of mixed operations works with: element types, vectors, images, clients.
#pragma once

#include "common/cuda/dtypes.cuh"
#include "mixed_op/args.h"

namespace metadnas::mixed_op {

using cuda::ceil_div;
using cuda::grid_size;
using cuda::kAllLanes;
using cuda::kWarp;
using cuda::launch;
using cuda::loaded;
using cuda::relu;
using cuda::shared_memory;
using cuda::Stored;
using cuda::Stream;

inline constexpr int kThreads = 256;  // of every block here
inline constexpr int kStrip = 8;      // pixels of a row that a thread convolves at once
inline constexpr int kQuad = 4;       // pixels of a row that a thread multiplies at once

// What is added up in: float for activations of 16 bits.
template <class S>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class S>
using Accumulate = typename AccumulateOf<S>::type;

// Blocks of a multiprocessor at once: the registers of a kernel are bounded by it, and only by it.
template <class S>
constexpr int kBlocks = std::is_same_v<S, double> ? 1 : 2;

// N neighbours that are read and written together, 16 bytes at a time at most.
template <class T, int N>
struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) Pack {
  T of[N];
};

template <int V, class S>
__device__ __forceinline__ void load(const S* from, Accumulate<S> (&to)[V]) {
  const auto pack = *reinterpret_cast<const Pack<S, V>*>(from);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = loaded(pack.of[i]);
}

template <int V, class S>
__device__ __forceinline__ void store(S* to, const Accumulate<S> (&from)[V]) {
  Pack<S, V> pack;
#pragma unroll
  for (int i = 0; i < V; ++i) pack.of[i] = Stored<S>::of(from[i]);
  *reinterpret_cast<Pack<S, V>*>(to) = pack;
}

// Where x is not positive no gradient passes; NaN lets it pass, as in PyTorch.
template <class A>
__device__ __forceinline__ A relu_gradient(A x, A gradient) {
  return x <= A{0} ? A{0} : gradient;
}

__device__ __forceinline__ int thread() { return static_cast<int>(threadIdx.x); }

// Rows of one batch norm's vectors: out = (z - mean) * inverse * gamma + beta.
enum NormRow { kMean, kInverse, kGamma, kBeta, kNormRows };
// And of its gradient's: dz = scale * gradient + slope * (z - mean) + shift.
enum GradientRow { kScale, kSlope, kShift, kGradientRows };

template <class S>
struct Frame {
  using A = Accumulate<S>;

  int64_t clients;
  int64_t images;         // of a client
  const int64_t* counts;  // (G) that count; null: all
  int channels;
  int norms;
  const A* params;  // (G, P)
  int64_t params_stride;
  const A* weights;  // (G, ...) mixing weights
  int64_t weights_stride;
  A* vectors;    // (G, norms, kNormRows, C)
  A* gradients;  // (G, norms, kGradientRows, C); backward only

  __device__ int64_t count(int64_t client) const {
    if (counts == nullptr) return images;
    const int64_t given = counts[client];
    return given < 0 ? 0 : given > images ? images : given;
  }
  __device__ bool counted(int64_t image) const {
    return counts == nullptr || image % images < count(image / images);
  }
  __device__ A* norm(int64_t client, int index) const {
    return vectors + (client * norms + index) * kNormRows * channels;
  }
  __device__ A* gradient(int64_t client, int index) const {
    return gradients + (client * norms + index) * kGradientRows * channels;
  }
  __device__ const A* param(int64_t client, int64_t at) const {
    return params + client * params_stride + at;
  }
  __device__ A weight(int64_t client, int64_t at) const {
    return weights[client * weights_stride + at];
  }
};

// Calls body.operator()<K, D, S>() for a depthwise convolution's run-time values.
template <class Body>
__device__ __forceinline__ void with_depthwise(int kernel, int dilation, int stride, Body&& body) {
  const bool one = stride == 1;
  if (kernel == 3 && dilation == 1) {
    return one ? body.template operator()<3, 1, 1>() : body.template operator()<3, 1, 2>();
  }
  if (kernel == 5 && dilation == 1) {
    return one ? body.template operator()<5, 1, 1>() : body.template operator()<5, 1, 2>();
  }
  if (kernel == 3) {
    return one ? body.template operator()<3, 2, 1>() : body.template operator()<3, 2, 2>();
  }
  return one ? body.template operator()<5, 2, 1>() : body.template operator()<5, 2, 2>();
}

}  // namespace metadnas::mixed_op
