// Storage types of activations: half precisions are read and written as they are, and computed with
// in float.
#pragma once

#include "common/cuda/runtime.h"

namespace metadnas::cuda {

__device__ __forceinline__ float loaded(float v) { return v; }
__device__ __forceinline__ double loaded(double v) { return v; }
__device__ __forceinline__ float loaded(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float loaded(__half v) { return __half2float(v); }

template <class S>
struct Stored;

template <>
struct Stored<float> {
  static __device__ __forceinline__ float of(float v) { return v; }
};
template <>
struct Stored<double> {
  static __device__ __forceinline__ double of(double v) { return v; }
};
template <>
struct Stored<__nv_bfloat16> {
  static __device__ __forceinline__ __nv_bfloat16 of(float v) { return __float2bfloat16(v); }
};
template <>
struct Stored<__half> {
  static __device__ __forceinline__ __half of(float v) { return __float2half(v); }
};

// ReLU that lets NaN through, as PyTorch's does.
template <class T>
__device__ __forceinline__ T relu(T v) {
  return v <= 0 ? T{0} : v;
}

}  // namespace metadnas::cuda
