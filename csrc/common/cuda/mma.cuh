// The tensor cores' product of small half-precision matrices, accumulated in float: a warp's
// 16 x 8 += 16 x 16 * 16 x 8. On the host the lanes exchange what they hold and do the same.
#pragma once

#include <cstring>

#include "common/cuda/dtypes.cuh"

namespace metadnas::cuda {

// Whether activations of type S are multiplied by tensor cores.
template <class S>
inline constexpr bool kTensorCores = std::is_same_v<S, __nv_bfloat16> || std::is_same_v<S, __half>;

// Two neighbours along the dimension that is added up; the first in the lower half.
template <class S>
__device__ __forceinline__ uint32_t packed(float first, float second) {
  const S both[2] = {Stored<S>::of(first), Stored<S>::of(second)};
  uint32_t bits;
  std::memcpy(&bits, both, sizeof(bits));
  return bits;
}

template <class S>
__device__ __forceinline__ float unpacked(uint32_t bits, int which) {
  S both[2];
  std::memcpy(both, &bits, sizeof(bits));
  return loaded(both[which]);
}

// Where a lane's elements are: of the left matrix rows group and group + 8 at columns pair, pair +
// 1 and those + 8 (a[0]: first row, a[1]: second row, a[2], a[3]: the same at columns + 8); of the
// right one rows pair, pair + 1 and those + 8 of column group; of the sums rows group (sums[0],
// [1]) and group + 8 at columns pair, pair + 1.
struct MmaLane {
  int group;
  int pair;

  __device__ MmaLane()
      : group(static_cast<int>(threadIdx.x) % kWarp / 4),
        pair(static_cast<int>(threadIdx.x) % 4 * 2) {}
};

template <class S>
__device__ __forceinline__ void mma(const uint32_t (&a)[4], const uint32_t (&b)[2],
                                    float (&sums)[4]) {
#if defined(METADNAS_CUDA_SHIM)
  const MmaLane own;
  for (int k = 0; k < 16; ++k) {
    const int high = k / 8, holder = k % 8 / 2;
    float left[2], right[2];
    for (int r = 0; r < 2; ++r) {
      left[r] = unpacked<S>(__shfl_sync(kAllLanes, a[2 * high + r], own.group * 4 + holder), k % 2);
    }
    for (int c = 0; c < 2; ++c) {
      const int lane = (own.pair + c) * 4 + holder;
      right[c] = unpacked<S>(__shfl_sync(kAllLanes, b[high], lane), k % 2);
    }
    for (int i = 0; i < 4; ++i) sums[i] += left[i / 2] * right[i % 2];
  }
#else
  // Volatile: nothing may move it to where not all lanes of the warp are.
  if constexpr (std::is_same_v<S, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#endif
}

}  // namespace metadnas::cuda
