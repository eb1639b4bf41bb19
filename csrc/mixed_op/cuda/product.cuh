// Pointwise products: small matrices in shared memory, results in registers.
#pragma once

#include "mixed_op/cuda/frame.cuh"

namespace metadnas::mixed_op {

// How a tile's results [pixel][column] are dealt out: kQuad pixels and RC columns a thread.
template <int RC>
struct ProductAt {
  int pixel;   // the first one
  int column;  // the first one
  bool live;

  __device__ ProductAt(int pixels, int columns) {
    const int groups = (columns + RC - 1) / RC;
    pixel = thread() / groups * kQuad;
    column = thread() % groups * RC;
    live = pixel < pixels;
  }
};

// A matrix in global memory: element [k][j] is at k * k_step + j * j_step for j of [begin, end),
// and 0 for others. One of the steps is 1.
template <class A>
struct Matrix {
  const A* data;
  int64_t k_step;
  int64_t j_step;
  int begin;
  int end;
};

// Rows [first, first + rows) and columns [0, padded) into to[row][column].
template <class A>
__device__ __forceinline__ void stage_matrix(const Matrix<A>& m, int first, int rows, int padded,
                                             A* to, int pitch) {
  for (int i = thread(); i < rows * padded; i += kThreads) {
    // Neighbouring threads read neighbours in memory.
    const int k = m.k_step == 1 ? i % rows : i / padded;
    const int j = m.k_step == 1 ? i / rows : i % padded;
    const bool live = j >= m.begin && j < m.end;
    to[k * pitch + j] = live ? m.data[(first + k) * m.k_step + j * m.j_step] : A{0};
  }
}

// sums[p][j] += values[k][pixel + p] * matrix[k][column + j] over `count` k. `values` and `matrix`
// point at the thread's pixel and column.
template <int RC, class A>
__device__ __forceinline__ void multiply(const A* values, int values_pitch, const A* matrix,
                                         int matrix_pitch, int count, A (&sums)[kQuad][RC]) {
  for (int k = 0; k < count; ++k) {
    A v[kQuad], m[RC];
    load<kQuad>(values + k * values_pitch, v);
    load<RC>(matrix + k * matrix_pitch, m);
#pragma unroll
    for (int p = 0; p < kQuad; ++p) {
#pragma unroll
      for (int j = 0; j < RC; ++j) sums[p][j] += v[p] * m[j];
    }
  }
}

// sums += values * matrix over all `count` rows of the matrix, which is staged some rows at a time.
// Starts with a barrier, so `values` may have been written just before; ends without one.
template <int RC, class A>
__device__ __forceinline__ void multiply_all(const A* values, int values_pitch, int count,
                                             const Matrix<A>& matrix, int columns,
                                             const ProductAt<RC>& at, int staged_rows, A* staged,
                                             A (&sums)[kQuad][RC]) {
  const int padded = (columns + RC - 1) / RC * RC, pitch = padded + kQuad;
  for (int k = 0; k < count; k += staged_rows) {
    const int rows = count - k < staged_rows ? count - k : staged_rows;
    if (k > 0) __syncthreads();
    stage_matrix(matrix, k, rows, padded, staged, pitch);
    __syncthreads();
    if (at.live) {
      multiply<RC>(values + k * values_pitch + at.pixel, values_pitch, staged + at.column, pitch,
                   rows, sums);
    }
  }
}

}  // namespace metadnas::mixed_op
