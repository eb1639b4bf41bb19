// The CUDA runtime, and the one way to launch a kernel. The only file that includes CUDA's headers:
// with METADNAS_CUDA_SHIM the same kernels run on the host instead (tests/cuda_shim).
#pragma once

#if defined(METADNAS_CUDA_SHIM)
#include "cuda_shim.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#if defined(__CUDACC__)
#include <cuda_pipeline_primitives.h>  // not for host compilers
#endif
#endif

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace metadnas::cuda {

using Stream = cudaStream_t;

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr size_t kPlainShared = 48 * 1024;  // more has to be asked for
inline constexpr size_t kMostShared = 99 * 1024;   // of a block on every architecture built for

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // not left behind for the next check to find
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline void zero(void* memory, size_t bytes, Stream stream) {
  if (bytes > 0) check(cudaMemsetAsync(memory, 0, bytes, stream), "clearing memory");
}

// Runs kernel(params) on grid x block threads; nothing where the grid is empty. `shared_bytes` is
// what shared_memory() gives a block. grid.x carries the big dimension.
template <class Params>
void launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t shared_bytes, Stream stream,
            const std::type_identity_t<Params>& params) {
  static_assert(std::is_trivially_copyable_v<Params> && sizeof(Params) <= 4096);
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  if (shared_bytes > kPlainShared) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "asking for shared memory");
  }
  void* arguments[] = {const_cast<std::remove_const_t<Params>*>(&params)};
  check(cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream),
        "launching a kernel");
}

// The block's dynamic shared memory, aligned for every type; its contents are undefined.
template <class T>
__device__ __forceinline__ T* shared_memory() {
#if defined(METADNAS_CUDA_SHIM)
  return static_cast<T*>(cuda_shim::shared_memory());
#else
  extern __shared__ __align__(128) unsigned char metadnas_shared[];
  return reinterpret_cast<T*>(metadnas_shared);
#endif
}

// A grid's dimension from a count that must fit it.
inline unsigned grid_size(int64_t count) {
  if (count < 0 || count > 0x7fffffff) {
    throw std::runtime_error("a grid of " + std::to_string(count) +
                             " blocks, expected 0 to 2^31-1");
  }
  return static_cast<unsigned>(count);
}

template <class T>
__host__ __device__ constexpr T ceil_div(T a, std::type_identity_t<T> b) {
  return (a + b - 1) / b;
}

}  // namespace metadnas::cuda
