// What kernels of mixed operations have in common: vectors of channels, rectifiers, kernel sizes.
#pragma once

#include "common/cuda/dtypes.cuh"
#include "mixed_op/cuda/frame.h"

namespace metadnas::mixed_op {

using cuda::kAllLanes;
using cuda::launch;
using cuda::loaded;
using cuda::relu;
using cuda::shared_memory;
using cuda::Stored;

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
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x / kWarp); }
__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x % kWarp); }

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
