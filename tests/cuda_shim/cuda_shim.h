// CUDA's language on the host: enough of it to run csrc/*/cuda as plain C++, one block after
// another. A thread runs until it waits for others; then the next one does.
//
// Launches take turns (one lock), so shared and built-in variables are plain statics instead of
// thread-local ones: those would cost a call at every use in a shared library.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __constant__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

template <class T, int N>
struct CudaShimVector;
template <class T>
struct alignas(2 * sizeof(T)) CudaShimVector<T, 2> {
  T x, y;
};
template <class T>
struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) CudaShimVector<T, 4> {
  T x, y, z, w;
};
using float2 = CudaShimVector<float, 2>;
using float4 = CudaShimVector<float, 4>;
using double2 = CudaShimVector<double, 2>;
using int2 = CudaShimVector<int, 2>;
using int4 = CudaShimVector<int, 4>;
using uint2 = CudaShimVector<unsigned, 2>;
using uint4 = CudaShimVector<unsigned, 4>;
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace cuda_shim {

inline constexpr int kWarpSize = 32;
inline constexpr int kMostThreads = 1024;
inline constexpr size_t kMostShared = 227 * 1024;

// What threads wait for each other in: all that meet must be in the same.
enum class Meeting { kBlock, kBlockOr, kWarp, kShuffle, kBallot };

struct Launch {
  void (*thread)(const void* kernel, const void* params);
  const void* kernel;
  const void* params;
  const char* name;
  dim3 grid;
  dim3 block;
  size_t shared_bytes;
};

// Throws std::runtime_error where a block's threads wait for each other in vain, or write behind
// the end of their shared memory.
void run(const Launch& launch);

void* shared_memory();

// Waits for all threads of the block; whether any of them came with `flag`.
bool meet_block(Meeting meeting, bool flag);
// Waits for the lanes of `mask`. Shuffle: the value of lane `source`; ballot: who came with a value
// other than 0.
uint64_t meet_warp(Meeting meeting, unsigned mask, uint64_t value, int source);
int lane();

// A copy to shared memory, made some time before wait_for_copies() returns.
void copy_later(void* to, const void* from, size_t bytes);
void wait_for_copies();

template <class T>
T shuffle(unsigned mask, T value, int source) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet_warp(Meeting::kShuffle, mask, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// The lane `source`, or this one where that is not of the same `width` lanes.
inline int within(int source, int width) {
  return source >= 0 && source / width == lane() / width ? source : lane();
}

}  // namespace cuda_shim

extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
inline constexpr int warpSize = cuda_shim::kWarpSize;

inline void __syncthreads() { cuda_shim::meet_block(cuda_shim::Meeting::kBlock, false); }
inline int __syncthreads_or(int flag) {
  return cuda_shim::meet_block(cuda_shim::Meeting::kBlockOr, flag != 0);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
  cuda_shim::meet_warp(cuda_shim::Meeting::kWarp, mask, 0, 0);
}
inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
  cuda_shim::copy_later(to, from, bytes);
}
inline void __pipeline_commit() {}
inline void __pipeline_wait_prior(size_t) { cuda_shim::wait_for_copies(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const int first = cuda_shim::lane() / width * width;
  return cuda_shim::shuffle(mask, value, first + (source & (width - 1)));
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = warpSize) {
  const int source = cuda_shim::lane() + static_cast<int>(by);
  return cuda_shim::shuffle(mask, value, cuda_shim::within(source, width));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = warpSize) {
  const int source = cuda_shim::lane() - static_cast<int>(by);
  return cuda_shim::shuffle(mask, value, cuda_shim::within(source, width));
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize) {
  return cuda_shim::shuffle(mask, value, cuda_shim::within(cuda_shim::lane() ^ bits, width));
}
inline unsigned __ballot_sync(unsigned mask, int flag) {
  const auto bits = cuda_shim::meet_warp(cuda_shim::Meeting::kBallot, mask, flag != 0, 0);
  return static_cast<unsigned>(bits);
}
inline int __any_sync(unsigned mask, int flag) { return __ballot_sync(mask, flag) != 0; }
inline int __all_sync(unsigned mask, int flag) { return __ballot_sync(mask, !flag) == 0; }

// Threads never run at the same time.
template <class T>
T atomicAdd(T* to, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>, "the order of floating-point additions must be fixed");
  const T before = *to;
  *to = before + value;
  return before;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}

inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(int bits) { return bits == 0 ? 32 : __builtin_clz(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
using std::max;
using std::min;

using __nv_bfloat16 = c10::BFloat16;
using __half = c10::Half;
inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half(float x) { return x; }

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaMemcpyKind { cudaMemcpyDeviceToDevice };

inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int) {
  return cudaSuccess;
}

template <class Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 grid, dim3 block, void** arguments,
                             size_t shared_bytes, cudaStream_t) {
  const auto thread = [](const void* kernel, const void* params) {
    auto* function = reinterpret_cast<void (*)(Params)>(const_cast<void*>(kernel));
    function(*static_cast<const Params*>(params));
  };
  cuda_shim::run({thread, reinterpret_cast<const void*>(kernel), arguments[0], __PRETTY_FUNCTION__,
                  grid, block, shared_bytes});
  return cudaSuccess;
}
