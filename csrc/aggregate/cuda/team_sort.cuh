// Sorting by a team of lanes side by side in a warp, each with 32 values in registers: bitonic
// merges across lanes, then within them.
#pragma once

#include "aggregate/cuda/sort.cuh"

namespace metadnas::aggregate_cuda {

inline constexpr int kOwn = 32;  // values of a lane

// Without a branch, which lanes would take in both directions.
template <class T>
__device__ __forceinline__ T one_of(bool smaller, T a, T b) {
  return (a < b) == smaller ? a : b;
}

// Every lane of the team gets the sum.
template <int Lanes, class T>
__device__ __forceinline__ T team_sum(T value) {
#pragma unroll
  for (int by = Lanes / 2; by > 0; by /= 2) {
    value += __shfl_xor_sync(cuda::kAllLanes, value, by);
  }
  return value;
}

// Two ascending runs of Lanes / 2 lanes each -> the first run's lanes hold the smaller half of all
// values, the second's the larger, each half bitonic.
template <int Lanes, class T>
__device__ __forceinline__ void halve(T (&values)[kOwn]) {
  const bool first = threadIdx.x % Lanes < Lanes / 2;
#pragma unroll
  for (int i = 0; i < kOwn / 2; ++i) {
    const int j = kOwn - 1 - i;
    const T at_i = __shfl_xor_sync(cuda::kAllLanes, values[j], Lanes - 1);
    const T at_j = __shfl_xor_sync(cuda::kAllLanes, values[i], Lanes - 1);
    values[i] = one_of(first, values[i], at_i);
    values[j] = one_of(first, values[j], at_j);
  }
}

// Bitonic runs of 2 By lanes, of one lane for By = 0, -> ascending ones.
template <int By, class T>
__device__ __forceinline__ void ascend(T (&values)[kOwn]) {
  if constexpr (By > 0) {
    const bool first = (threadIdx.x & By) == 0;
#pragma unroll
    for (T& value : values) {
      value = one_of(first, value, __shfl_xor_sync(cuda::kAllLanes, value, By));
    }
    ascend<By / 2>(values);
  } else {
#pragma unroll
    for (int by = kOwn / 2; by > 0; by /= 2) {
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        if ((i & by) == 0) order(values[i], values[i + by]);
      }
    }
  }
}

// Each lane's values ascend -> those of Lanes lanes do, one lane after the other.
template <int Lanes, class T>
__device__ __forceinline__ void merge_lanes(T (&values)[kOwn]) {
  if constexpr (Lanes > 1) {
    merge_lanes<Lanes / 2>(values);
    halve<Lanes>(values);
    ascend<Lanes / 4>(values);
  }
}

}  // namespace metadnas::aggregate_cuda
