// Sums over the threads of a warp or a block, in an order that never changes.
#pragma once

#include "common/cuda/runtime.h"

namespace metadnas::cuda {

// Every lane gets the sum.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  for (int bits = kWarp / 2; bits > 0; bits /= 2) value += __shfl_xor_sync(kAllLanes, value, bits);
  return value;
}

// Every thread gets the sum. scratch: kThreads / 32 elements of shared memory, free for other use
// behind the next barrier.
template <int kThreads, class T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
  static_assert(kThreads % kWarp == 0);
  constexpr int kWarps = kThreads / kWarp;
  const T own = warp_sum(value);
  if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = own;
  __syncthreads();
  T sum = scratch[0];
  for (int i = 1; i < kWarps; ++i) sum += scratch[i];
  return sum;
}

}  // namespace metadnas::cuda
