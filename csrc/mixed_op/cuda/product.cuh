// Pointwise products: small matrices in shared memory, results in registers.
#pragma once

#include "common/cuda/copy.cuh"
#include "common/cuda/mma.cuh"
#include "mixed_op/cuda/frame.cuh"

namespace metadnas::mixed_op {

using cuda::copy_async;
using cuda::wait_for_copies;

// How a tile's results [pixel][column] are dealt out: kQuad pixels and RC columns a thread.
template <int RC>
struct ProductAt {
  int pixel;   // the first one
  int column;  // the first one
  bool live;

  // groups: of RC columns.
  __device__ ProductAt(Divisor pixels, Divisor groups)
      : pixel(thread() / groups * kQuad), column(thread() % groups * RC), live(pixel < pixels) {}
};

// A matrix in global memory: element [k][j] is at k * pitch + j, or transposed at j * pitch + k,
// for j of [begin, end), and 0 for others.
template <class A, bool kTransposed>
struct Matrix {
  const A* data;
  int pitch;
  int begin;
  int end;
};

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

// A product's operands and its memory: values[k][pixel] in shared memory, a matrix of which some
// rows at a time are staged in it, and room for results[column][pixel], written behind a barrier
// once `values` has been read, which it may be.
template <class A, int RC, bool kTransposed>
struct Product {
  const A* values;
  int pitch;  // of values and results
  Divisor pixels;
  int count;  // k
  Matrix<A, kTransposed> matrix;
  int columns;
  int staged_rows;
  A* staged;
  A* results;

  __device__ int padded() const { return ceil_div(columns, RC) * RC; }
  __device__ int staged_pitch() const { return padded() + kQuad; }
};

// Begins to copy `staged_rows` rows of the matrix, or what is left of them. A warp takes what are
// neighbours in memory.
template <class A, int RC, bool kTransposed>
__device__ __forceinline__ void stage_rows(const Product<A, RC, kTransposed>& p, int first) {
  const auto& m = p.matrix;
  const int rows = min(p.count - first, p.staged_rows), padded = p.padded();
  const int inner = kTransposed ? rows : padded, outer = kTransposed ? padded : rows;
  for (int i = lane(); i < inner; i += kWarp) {
#pragma unroll 1
    for (int o = warp(); o < outer; o += kThreads / kWarp) {
      const int k = kTransposed ? i : o, j = kTransposed ? o : i;
      A* const to = p.staged + k * p.staged_pitch() + j;
      if (j >= m.begin && j < m.end) {
        copy_async(to,
                   m.data + (kTransposed ? j * m.pitch + first + k : (first + k) * m.pitch + j));
      } else {
        *to = A{0};
      }
    }
  }
}

// Calls use(values, rows) for all rows of the matrix, some at a time; the first ones have been
// copied. Starts with a barrier, so `values` may have been written just before; ends without one.
template <class A, int RC, bool kTransposed, class Use>
__device__ __forceinline__ void for_staged_rows(const Product<A, RC, kTransposed>& p, Use&& use) {
  for (int k = 0; k < p.count; k += p.staged_rows) {
    if (k > 0) {
      __syncthreads();
      stage_rows(p, k);
      wait_for_copies();
    }
    __syncthreads();
    use(p.values + k * p.pitch, min(p.count - k, p.staged_rows));
  }
}

// Tensor cores: a warp has 16 pixels and every so many eights of columns, in fragments.
template <class S, int RC, bool kTransposed>
class TensorProduct {
 public:
  __device__ explicit TensorProduct(const Product<float, RC, kTransposed>& p)
      : p_(p),
        pixel_(warp() * 16 % p.pixels + lane_.group),
        column_(warp() * 16 / p.pixels * 8),
        step_(kThreads / kWarp * 16 / p.pixels * 8) {}

  // Sums for ProductAt: through p.results.
  __device__ void run(const ProductAt<RC>& at, float (&sums)[kQuad][RC]) {
    for_staged_rows(p_, [&](const float* values, int rows) { add(values, rows); });
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
  __device__ void add(const float* values, int rows) {
    const int padded = p_.padded(), pitch = p_.staged_pitch();
    const auto value = [&](int k, int pixel) {
      return k < rows ? values[k * p_.pitch + pixel] : 0.0f;
    };
#pragma unroll 1
    for (int k0 = 0; k0 < rows; k0 += 16) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int k = k0 + lane_.pair + i / 2 * 8, pixel = pixel_ + i % 2 * 8;
        a[i] = cuda::packed<S>(value(k, pixel), value(k + 1, pixel));
      }
      const int k = k0 + lane_.pair;
      int column = column_ + lane_.group;
      const float* weights = p_.staged + k * pitch + column;
#pragma unroll
      for (int j = 0; j < RC; ++j, column += step_, weights += step_) {
        if (column - lane_.group >= p_.columns) break;
        const auto weight = [&](int i) {
          return k + i < rows && column < padded ? weights[i * pitch] : 0.0f;
        };
        const uint32_t b[2] = {cuda::packed<S>(weight(0), weight(1)),
                               cuda::packed<S>(weight(8), weight(9))};
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

  const Product<float, RC, kTransposed>& p_;
  const cuda::MmaLane lane_;
  const int pixel_;
  const int column_;
  const int step_;
  float fragments_[RC][4] = {};
};

// sums += all of a product whose operands are of type S where tensor cores multiply them. The first
// rows of the matrix have been copied. Starts with a barrier; threads may be in `results` still
// when it ends.
template <class S, int RC, bool kTransposed>
__device__ __forceinline__ void multiply_all(const Product<Accumulate<S>, RC, kTransposed>& p,
                                             const ProductAt<RC>& at,
                                             Accumulate<S> (&sums)[kQuad][RC]) {
  using A = Accumulate<S>;
  if constexpr (cuda::kTensorCores<S>) {
    if (p.pixels.value % 16 == 0) return TensorProduct<S, RC, kTransposed>(p).run(at, sums);
  }
  for_staged_rows(p, [&](const A* values, int rows) {
    if (!at.live) return;
    multiply<RC>(values + at.pixel, p.pitch, p.staged + at.column, p.staged_pitch(), rows, sums);
  });
}

}  // namespace metadnas::mixed_op
