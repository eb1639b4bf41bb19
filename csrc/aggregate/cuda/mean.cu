// Weighted mean: one pass over the data, in client order.
#include "aggregate/cuda/kernels.h"

namespace metadnas::aggregate_cuda {
namespace {

using cuda::ceil_div;
using cuda::grid_size;
using cuda::launch;

constexpr int kThreads = 256;
constexpr int kPerThread = 4;
constexpr int64_t kColumns = kThreads * kPerThread;  // of a block
constexpr int kWeightsAtOnce = 1024;

template <class T>
struct ScaleShares {
  const T* weights;
  int64_t clients;
  double* shares;
};

// A block a mixture. One thread adds up in client order: clients of weight 0 change no bit.
template <class T>
__global__ void __launch_bounds__(kThreads) scale_shares_kernel(ScaleShares<T> p) {
  __shared__ double staged[kWeightsAtOnce];
  __shared__ double divisor;
  const T* weights = p.weights + blockIdx.x * p.clients;
  double total = 0;
  bool valid = true;
  for (int64_t first = 0; first < p.clients; first += kWeightsAtOnce) {
    const int count = static_cast<int>(min(p.clients - first, int64_t{kWeightsAtOnce}));
    __syncthreads();
    for (int i = threadIdx.x; i < count; i += kThreads) {
      staged[i] = static_cast<double>(weights[first + i]);
    }
    __syncthreads();
    for (int i = 0; threadIdx.x == 0 && i < count; ++i) {
      total += staged[i];
      valid = valid && staged[i] >= 0;
    }
  }
  if (threadIdx.x == 0) {
    valid = valid && total > 0 && total - total == 0;
    divisor = valid ? total : std::nan("");
  }
  __syncthreads();
  for (int64_t g = threadIdx.x; g < p.clients; g += kThreads) {
    p.shares[blockIdx.x * p.clients + g] = static_cast<double>(weights[g]) / divisor;
  }
}

template <class T>
struct Mean {
  MeanInputs<T> in;
  const double* shares;
  int64_t parts;
  double* partial;  // (parts, P); of one part the result is written at once
};

template <class T>
__global__ void __launch_bounds__(kThreads) mean_kernel(Mean<T> p) {
  const Clients<T>& from = p.in.from;
  const int64_t first = blockIdx.x / p.parts * kColumns + threadIdx.x;
  const int64_t part = blockIdx.x % p.parts;
  const int64_t begin = p.parts == 1 ? 0 : part * kPartClients;
  const int64_t end = p.parts == 1 ? from.clients : min(begin + kPartClients, from.clients);
  double sums[kPerThread] = {};
#pragma unroll 4
  for (int64_t g = begin; g < end; ++g) {
    const double share = p.shares[g];
    // 0 * NaN is NaN: a client of weight 0 must not reach the result.
    const bool counts = share != 0;
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int64_t column = first + i * kThreads;
      const bool read = counts && column < from.columns;
      sums[i] += share * (read ? static_cast<double>(from.row(g)[column]) : 0);
    }
  }
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int64_t column = first + i * kThreads;
    if (column >= from.columns) continue;
    if (p.parts == 1) {
      p.in.out[column] = static_cast<T>(sums[i]);
    } else {
      p.partial[part * from.columns + column] = sums[i];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) add_parts_kernel(Mean<T> p) {
  const int64_t columns = p.in.from.columns;
  const int64_t column = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (column >= columns) return;
  double sum = 0;
  for (int64_t part = 0; part < p.parts; ++part) sum += p.partial[part * columns + column];
  p.in.out[column] = static_cast<T>(sum);
}

}  // namespace

template <class T>
void scale_shares(const T* weights, int64_t mixtures, int64_t clients, double* shares,
                  cuda::Stream stream) {
  launch(scale_shares_kernel<T>, grid_size(mixtures), kThreads, 0, stream,
         {weights, clients, shares});
}

template <class T>
void mean(const MeanInputs<T>& in, const double* shares, int64_t parts, double* partial,
          cuda::Stream stream) {
  const Mean<T> params{in, shares, parts, partial};
  const int64_t columns = in.from.columns;
  launch(mean_kernel<T>, grid_size(ceil_div(columns, kColumns) * parts), kThreads, 0, stream,
         params);
  if (parts == 1) return;
  launch(add_parts_kernel<T>, grid_size(ceil_div(columns, kThreads)), kThreads, 0, stream, params);
}

template void scale_shares(const float*, int64_t, int64_t, double*, cuda::Stream);
template void scale_shares(const double*, int64_t, int64_t, double*, cuda::Stream);
template void mean(const MeanInputs<float>&, const double*, int64_t, double*, cuda::Stream);
template void mean(const MeanInputs<double>&, const double*, int64_t, double*, cuda::Stream);

}  // namespace metadnas::aggregate_cuda
