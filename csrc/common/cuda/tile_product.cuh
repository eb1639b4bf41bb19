// A block's tile of a matrix product, accumulated in registers from slices in shared memory. Plain
// arithmetic in T: operands are whatever two functions return, so they may be gathered, rectified
// or made on the spot.
#pragma once

#include "common/cuda/runtime.h"

namespace metadnas::cuda {

// The direction in which neighbouring threads read an operand, the one its memory is dense in.
enum class Along { kDepth, kSide };

struct MultiplyAdd {
  template <class T>
  static __device__ __forceinline__ T of(T a, T b, T sum) {
    return sum + a * b;
  }
};

// 0 * NaN is nothing, as if the factor were not there.
struct SkipZero {
  template <class T>
  static __device__ __forceinline__ T of(T a, T b, T sum) {
    return a == 0 ? sum : sum + a * b;
  }
};

template <class T, int kTileRows, int kTileColumns>
struct TileProduct {
  static constexpr int kRows = kTileRows, kColumns = kTileColumns;
  static constexpr int kEach = 4;  // rows and columns of a thread
  static constexpr int kDepth = 16;
  static constexpr int kThreads = kRows / kEach * (kColumns / kEach);
  // Of a multiprocessor, for launch bounds: left alone, the compiler spills for the sake of more.
  static constexpr int kBlocks = kThreads < 384 ? 384 / kThreads : 1;
  static constexpr int kPad = 16 / sizeof(T);  // keeps rows aligned for 16-byte reads

  struct Shared {
    __align__(16) T a[kDepth][kRows + kPad];
    __align__(16) T b[kDepth][kColumns + kPad];
  };

  T sums[kEach][kEach] = {};

  // The tile's first row and column of this thread.
  static __device__ __forceinline__ int row() { return threadIdx.x / (kColumns / kEach) * kEach; }
  static __device__ __forceinline__ int column() {
    return threadIdx.x % (kColumns / kEach) * kEach;
  }

  // sums(row, column) += a(row, k) * b(k, column) for k in [0, depth). Both functions are asked for
  // whole tiles, at depths below `depth`: 0 where there is nothing.
  template <Along kA, Along kB, class Multiply = MultiplyAdd, class A, class B>
  __device__ __forceinline__ void add(Shared& shared, int64_t depth, A&& a, B&& b) {
    for (int64_t k0 = 0; k0 < depth; k0 += kDepth) {
      fill<kA, kRows>(shared.a, k0, depth, a);
      fill<kB, kColumns>(shared.b, k0, depth, [&](int column, int64_t k) { return b(k, column); });
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kDepth; ++k) {
        T left[kEach], right[kEach];
#pragma unroll
        for (int i = 0; i < kEach; ++i) left[i] = shared.a[k][row() + i];
#pragma unroll
        for (int i = 0; i < kEach; ++i) right[i] = shared.b[k][column() + i];
#pragma unroll
        for (int r = 0; r < kEach; ++r) {
#pragma unroll
          for (int c = 0; c < kEach; ++c) sums[r][c] = Multiply::of(left[r], right[c], sums[r][c]);
        }
      }
      __syncthreads();
    }
  }

 private:
  template <Along kAlong, int kSide, class Value>
  static __device__ __forceinline__ void fill(T (&to)[kDepth][kSide + kPad], int64_t k0,
                                              int64_t depth, Value&& value) {
#pragma unroll 4
    for (int i = threadIdx.x; i < kSide * kDepth; i += kThreads) {
      const int k = kAlong == Along::kDepth ? i % kDepth : i / kSide;
      const int side = kAlong == Along::kDepth ? i / kDepth : i % kSide;
      to[k][side] = k0 + k < depth ? value(side, k0 + k) : T{0};
    }
  }
};

}  // namespace metadnas::cuda
