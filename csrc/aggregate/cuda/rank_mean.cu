// Mean of each column's values between two ranks: a thread a column, which it sorts in registers
// or, of many clients, searches in shared memory.
#include <limits>

#include "aggregate/cuda/kernels.h"
#include "aggregate/cuda/select.cuh"
#include "aggregate/cuda/sort.cuh"

namespace metadnas::aggregate_cuda {
namespace {

using cuda::ceil_div;
using cuda::grid_size;
using cuda::launch;

constexpr int kSortThreads = 128;
template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();
constexpr int kSelectThreads = 32;  // columns that share a block's memory

template <int N, class T>
__global__ void __launch_bounds__(kSortThreads, 1) sorted_mean_kernel(RankMeanArgs<T> p) {
  const int64_t column = int64_t{blockIdx.x} * kSortThreads + threadIdx.x;
  if (column >= p.from.columns) return;
  T values[N];
  int numbers = 0;
#pragma unroll
  for (int g = 0; g < N; ++g) {
    const T v = g < p.from.clients ? p.from.row(g)[column] : kNan<T>;
    numbers += v == v;
    values[g] = v == v ? v : kInfinity<T>;  // both come last
  }
  sort_values(values);
  double sum = 0;
#pragma unroll
  for (int g = 0; g < N; ++g) {
    if (g >= p.begin && g < p.end) sum += static_cast<double>(values[g]);
  }
  const double mean = sum / static_cast<double>(p.end - p.begin);
  p.out[column] = numbers >= p.end ? static_cast<T>(mean) : kNan<T>;
}

// The mean of what lies between the values of two ranks: everything strictly between counts once,
// the two as often as they are within the ranks.
template <class T, class Source>
__device__ double mean_between(const Source& keys, const RankMeanArgs<T>& p, T first, T last) {
  int64_t at_most_first = 0, below_last = 0;
  double sum = 0;
  for (int64_t g = 0; g < p.from.clients; ++g) {
    const T v = Keys<T>::value(keys(g));
    at_most_first += v <= first;
    below_last += v < last;
    if (v > first && v < last) sum += static_cast<double>(v);
  }
  sum += static_cast<double>(first) * static_cast<double>(at_most_first - p.begin);
  sum += static_cast<double>(last) * static_cast<double>(p.end - below_last);
  return sum / static_cast<double>(p.end - p.begin);
}

template <class T, class Source>
__device__ double selected_mean(const Source& keys, const RankMeanArgs<T>& p) {
  using Key = typename Keys<T>::Key;
  const int64_t count = p.from.clients;
  Key least = keys(0), most = least;
  for (int64_t g = 1; g < count; ++g) {
    const Key key = keys(g);
    least = min(least, key);
    most = max(most, key);
  }
  const Key first_key = select_rank(keys, count, p.begin, least, most);
  Key last_key = first_key;
  if (p.end - p.begin == 2) {  // the next value needs no second search
    const Split<Key> split = split_at(keys, count, first_key, least, most);
    if (split.below < p.end) last_key = split.next;
  } else if (p.end - p.begin > 2) {
    last_key = select_rank(keys, count, p.end - 1, least, most);
  }
  const T first = Keys<T>::value(first_key), last = Keys<T>::value(last_key);
  if (first == last) return static_cast<double>(first);
  return mean_between(keys, p, first, last);
}

// The value's key, NaN's that of infinity: both come last.
template <class T>
__device__ __forceinline__ typename Keys<T>::Key key_of(T v) {
  return Keys<T>::of(v == v ? v : kInfinity<T>);
}

template <bool kStaged, class T>
__global__ void __launch_bounds__(kSelectThreads) selected_mean_kernel(RankMeanArgs<T> p) {
  using Key = typename Keys<T>::Key;
  const int64_t column = int64_t{blockIdx.x} * kSelectThreads + threadIdx.x;
  if (column >= p.from.columns) return;
  const T* values = p.from.x + column;
  const int64_t columns = p.from.columns;
  Key* staged = cuda::shared_memory<Key>() + threadIdx.x;
  int64_t numbers = 0;
#pragma unroll 8
  for (int64_t g = 0; g < p.from.clients; ++g) {
    const T v = values[g * columns];
    numbers += v == v;
    if constexpr (kStaged) staged[g * kSelectThreads] = key_of(v);
  }
  double mean;
  if constexpr (kStaged) {
    mean = selected_mean([&](int64_t g) { return staged[g * kSelectThreads]; }, p);
  } else {
    mean = selected_mean([&](int64_t g) { return key_of(values[g * columns]); }, p);
  }
  p.out[column] = numbers >= p.end ? static_cast<T>(mean) : kNan<T>;
}

template <int N, class T>
void sort(const RankMeanArgs<T>& args, cuda::Stream stream) {
  launch(sorted_mean_kernel<N, T>, grid_size(ceil_div(args.from.columns, kSortThreads)),
         kSortThreads, 0, stream, args);
}

}  // namespace

template <class T>
void rank_mean(const RankMeanArgs<T>& args, cuda::Stream stream) {
  const int64_t clients = args.from.clients;
  if (clients <= 4) return sort<4>(args, stream);
  if (clients <= 8) return sort<8>(args, stream);
  if (clients <= 16) return sort<16>(args, stream);
  if (clients <= 32) return sort<32>(args, stream);
  if constexpr (sizeof(T) == sizeof(float)) {  // 64 doubles leave no register for anything else
    if (clients <= 64) return sort<64>(args, stream);
  }
  const unsigned blocks = grid_size(ceil_div(args.from.columns, kSelectThreads));
  const size_t bytes = static_cast<size_t>(clients) * kSelectThreads * sizeof(T);
  if (bytes <= cuda::kMostShared) {
    launch(selected_mean_kernel<true, T>, blocks, kSelectThreads, bytes, stream, args);
  } else {
    launch(selected_mean_kernel<false, T>, blocks, kSelectThreads, 0, stream, args);
  }
}

template void rank_mean(const RankMeanArgs<float>&, cuda::Stream);
template void rank_mean(const RankMeanArgs<double>&, cuda::Stream);

}  // namespace metadnas::aggregate_cuda
