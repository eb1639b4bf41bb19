// One pass over parameters, gradients and moments a step; before it, the norms of the rows and what
// a row needs to know.
#include "common/cuda/reduce.cuh"
#include "row_optimizers/cuda/steps.h"

namespace metadnas::row_optimizers {
namespace {

using cuda::ceil_div;
using cuda::grid_size;
using cuda::kWarp;
using cuda::launch;

constexpr int kThreads = 256;
constexpr int kPerThread = 4;
constexpr int64_t kColumns = kThreads * kPerThread;  // of a block

template <class T>
struct SquareSums {
  const T* rows;
  int64_t width;
  RowNorms norms;
};

template <class T>
__global__ void __launch_bounds__(kThreads) square_sums_kernel(SquareSums<T> p) {
  __shared__ double scratch[kThreads / kWarp];
  const int64_t row = blockIdx.x / p.norms.pieces, piece = blockIdx.x % p.norms.pieces;
  const T* from = p.rows + row * p.width;
  const int64_t begin = piece * kNormColumns;
  const int64_t end = min(begin + kNormColumns, p.width);
  double sum = 0;
#pragma unroll 4
  for (int64_t c = begin + threadIdx.x; c < end; c += kThreads) {
    const double v = static_cast<double>(from[c]);
    sum += v * v;
  }
  sum = cuda::block_sum<kThreads>(sum, scratch);
  if (threadIdx.x == 0) p.norms.sums[row * p.norms.pieces + piece] = sum;
}

// By a warp: every lane gets the row's factor.
__device__ double grad_scale(const RowNorms& norms, int64_t row) {
  if (!(norms.limit > 0)) return 1;
  double sum = 0;
  for (int64_t i = threadIdx.x; i < norms.pieces; i += kWarp) {
    sum += norms.sums[row * norms.pieces + i];
  }
  return clip_scale(cuda::warp_sum(sum), norms.limit);
}

struct PrepareAdam {
  RowNorms norms;
  float* steps;
  AdamOptions options;
  AdamRow* to;
};

__global__ void prepare_adam_kernel(PrepareAdam p) {
  const double scale = grad_scale(p.norms, blockIdx.x);
  if (threadIdx.x > 0) return;
  p.steps[blockIdx.x] += 1;
  p.to[blockIdx.x] = adam_row(scale, static_cast<double>(p.steps[blockIdx.x]), p.options);
}

struct PrepareSgd {
  RowNorms norms;
  int64_t first;
  SgdRow* to;
  double rates[kRatesAtOnce];
};

__global__ void prepare_sgd_kernel(PrepareSgd p) {
  const int64_t row = p.first + blockIdx.x;
  const double scale = grad_scale(p.norms, row);
  if (threadIdx.x == 0) p.to[row] = {scale, p.rates[blockIdx.x]};
}

// step(row, offset) for this thread's elements.
template <class T, class Step>
__device__ __forceinline__ void for_each_element(const Rows<T>& rows, Step&& step) {
  const int64_t pieces = ceil_div(rows.width, kColumns);
  const int64_t row = blockIdx.x / pieces;
  const int64_t first = blockIdx.x % pieces * kColumns + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t column = first + i * kThreads;
    if (column < rows.width) step(row, row * rows.width + column);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) adam_kernel(AdamArgs<T> p) {
  const T decay = static_cast<T>(p.weight_decay), keep = static_cast<T>(p.beta2);
  const T eps = static_cast<T>(p.eps);
  const T mean_step = static_cast<T>(1 - p.beta1), square_step = static_cast<T>(1 - p.beta2);
  for_each_element(p, [&](int64_t row, int64_t i) {
    const AdamRow own = p.rows[row];
    const T w = p.parameters[i];
    const T g = static_cast<T>(own.grad_scale) * p.grad[i] + decay * w;
    T m = p.mean[i], v = p.square[i];
    m += mean_step * (g - m);
    v = keep * v + square_step * (g * g);
    p.mean[i] = m;
    p.square[i] = v;
    const T size = std::sqrt(v) * static_cast<T>(own.correction) + eps;
    p.parameters[i] = w - static_cast<T>(own.step_size) * (m / size);
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads) sgd_kernel(SgdArgs<T> p) {
  const T decay = static_cast<T>(p.weight_decay), momentum = static_cast<T>(p.momentum);
  for_each_element(p, [&](int64_t row, int64_t i) {
    const SgdRow own = p.rows[row];
    const T w = p.parameters[i];
    const T g = static_cast<T>(own.grad_scale) * p.grad[i] + decay * w;
    const T v = momentum * p.velocity[i] + g;
    p.velocity[i] = v;
    p.parameters[i] = w - static_cast<T>(own.rate) * v;
  });
}

template <class T>
unsigned blocks_of(const Rows<T>& rows) {
  return grid_size(rows.count * ceil_div(rows.width, kColumns));
}

}  // namespace

template <class T>
void square_sums(const Rows<T>& rows, const RowNorms& norms, cuda::Stream stream) {
  launch(square_sums_kernel<T>, grid_size(rows.count * norms.pieces), kThreads, 0, stream,
         {rows.grad, rows.width, norms});
}

void prepare_adam(int64_t count, const RowNorms& norms, float* steps, const AdamOptions& options,
                  AdamRow* to, cuda::Stream stream) {
  launch(prepare_adam_kernel, grid_size(count), kWarp, 0, stream, {norms, steps, options, to});
}

void prepare_sgd(int64_t count, const RowNorms& norms, const double* rates, SgdRow* to,
                 cuda::Stream stream) {
  for (int64_t first = 0; first < count; first += kRatesAtOnce) {
    PrepareSgd params{norms, first, to, {}};
    const int64_t rows = count - first < kRatesAtOnce ? count - first : kRatesAtOnce;
    for (int64_t i = 0; i < rows; ++i) params.rates[i] = rates[first + i];
    launch(prepare_sgd_kernel, grid_size(rows), kWarp, 0, stream, params);
  }
}

template <class T>
void adam(const AdamArgs<T>& args, cuda::Stream stream) {
  launch(adam_kernel<T>, blocks_of(args), kThreads, 0, stream, args);
}

template <class T>
void sgd(const SgdArgs<T>& args, cuda::Stream stream) {
  launch(sgd_kernel<T>, blocks_of(args), kThreads, 0, stream, args);
}

template void square_sums(const Rows<float>&, const RowNorms&, cuda::Stream);
template void square_sums(const Rows<double>&, const RowNorms&, cuda::Stream);
template void adam(const AdamArgs<float>&, cuda::Stream);
template void adam(const AdamArgs<double>&, cuda::Stream);
template void sgd(const SgdArgs<float>&, cuda::Stream);
template void sgd(const SgdArgs<double>&, cuda::Stream);

}  // namespace metadnas::row_optimizers
