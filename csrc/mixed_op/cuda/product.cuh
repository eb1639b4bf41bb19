// Pointwise products: small matrices in shared memory, results in registers.
#pragma once

#include "common/cuda/mma.cuh"
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

// A product's operands and its memory: values[k][pixel] in shared memory, a matrix that is staged
// some rows at a time, and room for results[column][pixel], written behind a barrier once `values`
// has been read, which it may be.
template <class A>
struct Product {
  const A* values;
  int pitch;  // of values and results
  int pixels;
  int count;  // k
  Matrix<A> matrix;
  int columns;
  int staged_rows;
  A* staged;
  A* results;
};

// Calls use(values, staged, pitch of `staged`, rows) for all rows of the matrix, some at a time.
// Starts with a barrier, so `values` may have been written just before; ends without one.
template <class A, class Use>
__device__ __forceinline__ void for_staged_rows(const Product<A>& p, int padded, Use&& use) {
  const int pitch = padded + kQuad;
  for (int k = 0; k < p.count; k += p.staged_rows) {
    const int rows = min(p.count - k, p.staged_rows);
    if (k > 0) __syncthreads();
    stage_matrix(p.matrix, k, rows, padded, p.staged, pitch);
    __syncthreads();
    use(p.values + k * p.pitch, p.staged, pitch, rows);
  }
}

// Tensor cores: a warp has 16 pixels and every so many eights of columns, in fragments.
template <class S, int RC>
class TensorProduct {
 public:
  __device__ explicit TensorProduct(const Product<float>& p)
      : p_(p),
        padded_(ceil_div(p.columns, RC) * RC),
        pixel_(thread() / kWarp % (p.pixels / 16) * 16 + lane_.group),
        column_(thread() / kWarp / (p.pixels / 16) * 8),
        step_(kThreads / kWarp / (p.pixels / 16) * 8) {}

  // Sums for ProductAt: through p.results.
  __device__ void run(const ProductAt<RC>& at, float (&sums)[kQuad][RC]) {
    for_staged_rows(p_, padded_,
                    [&](const float* values, const float* staged, int pitch, int rows) {
                      add(values, staged, pitch, rows);
                    });
    __syncthreads();
    write();
    __syncthreads();
    if (!at.live) return;
#pragma unroll
    for (int j = 0; j < RC; ++j) {
      if (at.column + j >= p_.columns) break;
      float own[kQuad];
      load<kQuad>(p_.results + (at.column + j) * p_.pitch + at.pixel, own);
#pragma unroll
      for (int p = 0; p < kQuad; ++p) sums[p][j] += own[p];
    }
  }

 private:
  __device__ void add(const float* values, const float* staged, int pitch, int rows) {
    const auto value = [&](int k, int pixel) {
      return k < rows ? values[k * p_.pitch + pixel] : 0.0f;
    };
    const auto weight = [&](int k, int column) {
      return k < rows && column < padded_ ? staged[k * pitch + column] : 0.0f;
    };
    for (int k0 = 0; k0 < rows; k0 += 16) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = k0 + lane_.pair + i / 2 * 8, pixel = pixel_ + i % 2 * 8;
        a[i] = cuda::packed<S>(value(k, pixel), value(k + 1, pixel));
      }
#pragma unroll
      for (int j = 0; j < RC; ++j) {
        const int column = column_ + j * step_ + lane_.group;
        if (column_ + j * step_ >= p_.columns) break;
        uint32_t b[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int k = k0 + lane_.pair + i * 8;
          b[i] = cuda::packed<S>(weight(k, column), weight(k + 1, column));
        }
        cuda::mma<S>(a, b, fragments_[j]);
      }
    }
  }

  __device__ void write() const {
#pragma unroll
    for (int j = 0; j < RC; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = column_ + j * step_ + lane_.pair + i % 2;
        if (column >= p_.columns) continue;
        p_.results[column * p_.pitch + pixel_ + i / 2 * 8] = fragments_[j][i];
      }
    }
  }

  const Product<float>& p_;
  const cuda::MmaLane lane_;
  const int padded_;
  const int pixel_;
  const int column_;
  const int step_;
  float fragments_[RC][4] = {};
};

// sums += all of a product whose operands are of type S where tensor cores multiply them. Starts
// with a barrier; threads may be in `results` still when it ends.
template <class S, int RC>
__device__ __forceinline__ void multiply_all(const Product<Accumulate<S>>& p,
                                             const ProductAt<RC>& at,
                                             Accumulate<S> (&sums)[kQuad][RC]) {
  using A = Accumulate<S>;
  if constexpr (cuda::kTensorCores<S>) {
    if (p.pixels % 16 == 0) return TensorProduct<S, RC>(p).run(at, sums);
  }
  for_staged_rows(p, ceil_div(p.columns, RC) * RC,
                  [&](const A* values, const A* staged, int pitch, int rows) {
                    if (!at.live) return;
                    multiply<RC>(values + at.pixel, p.pitch, staged + at.column, pitch, rows, sums);
                  });
}

}  // namespace metadnas::mixed_op
