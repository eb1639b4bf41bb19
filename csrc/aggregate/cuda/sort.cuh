// Sorting in registers: Batcher's network of odd-even merges, every index a constant.
#pragma once

#include "common/cuda/runtime.h"

namespace metadnas::aggregate_cuda {

template <class T>
__device__ __forceinline__ void order(T& a, T& b) {
  const T low = fmin(a, b);
  b = fmax(a, b);
  a = low;
}

// Within sorted runs of `Run` values, pairs `By` apart.
template <int Run, int By, int N, class T>
__device__ __forceinline__ void compare_layer(T (&values)[N]) {
#pragma unroll
  for (int i = By % Run; i + By < N; ++i) {
    const bool first = (i - By % Run) % (2 * By) < By;
    if (first && i / (2 * Run) == (i + By) / (2 * Run)) order(values[i], values[i + By]);
  }
}

template <int Run, int By, int N, class T>
__device__ __forceinline__ void merge_runs(T (&values)[N]) {
  compare_layer<Run, By>(values);
  if constexpr (By > 1) merge_runs<Run, By / 2>(values);
}

// N is a power of 2; there is no NaN.
template <int Run = 1, int N, class T>
__device__ __forceinline__ void sort_values(T (&values)[N]) {
  if constexpr (Run < N) {
    merge_runs<Run, Run>(values);
    sort_values<2 * Run>(values);
  }
}

}  // namespace metadnas::aggregate_cuda
