// Mean of each column's values between two ranks. A thread sorts a column of up to 64 floats or 32
// doubles in its registers, a team of lanes up to 1024 floats; of more, a thread searches for the
// ranks' values.
#include <limits>

#include "aggregate/cuda/kernels.h"
#include "aggregate/cuda/select.cuh"
#include "aggregate/cuda/sort.cuh"
#include "aggregate/cuda/team_sort.cuh"

namespace metadnas::aggregate_cuda {
namespace {

using cuda::ceil_div;
using cuda::grid_size;
using cuda::launch;

constexpr int kSortThreads = 128;
constexpr int kTeamThreads = 256;
constexpr int kSelectThreads = 128;
template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();
template <class T>
constexpr T kNan = std::numeric_limits<T>::quiet_NaN();

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

// A block's columns, of kOwn * Lanes places each, on their way from rows to teams.
template <int Lanes, class T>
struct Stage {
  static constexpr int kPlaces = kOwn * Lanes;
  static constexpr int kColumns = kTeamThreads / Lanes;
  static constexpr int kStride = kColumns + cuda::kWarp / Lanes;  // a warp reads from all banks
  static constexpr size_t kBytes = sizeof(T) * kPlaces * kStride;
  static_assert(kBytes <= cuda::kMostShared);

  // Behind the clients come `below` places of -infinity, then +infinity.
  static __device__ __forceinline__ void fill(T* staged, const RankMeanArgs<T>& p, int64_t below) {
    const int column = threadIdx.x % kColumns;
    const int64_t at = int64_t{blockIdx.x} * kColumns + column;
    const bool there = at < p.from.columns;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int g = threadIdx.x / kColumns + i * Lanes;
      T v = g < p.from.clients + below ? -kInfinity<T> : kInfinity<T>;
      if (there && g < p.from.clients) v = p.from.row(g)[at];
      staged[g * kStride + column] = v;
    }
    __syncthreads();
  }

  // Into a lane of the column's team; NaN as infinity. Returns how many NaN the team has.
  static __device__ __forceinline__ int take(const T* staged, T (&values)[kOwn]) {
    const int lane = threadIdx.x % Lanes, column = threadIdx.x / Lanes;
    int nans = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const T v = staged[(lane + i * Lanes) * kStride + column];
      nans += v != v;
      values[i] = v == v ? v : kInfinity<T>;
    }
    return team_sum<Lanes>(nans);
  }
};

// The mean of the two values in the middle, or the first of them, without sorting to the end.
template <int Lanes, class T>
__device__ __forceinline__ double middle_mean(T (&values)[kOwn], bool both) {
  merge_lanes<Lanes / 2>(values);
  halve<Lanes>(values);
  const bool first = threadIdx.x % Lanes < Lanes / 2;
  T edge = values[0];  // the largest of the smaller half, the smallest of the larger
#pragma unroll
  for (int i = 1; i < kOwn; ++i) edge = one_of(!first, edge, values[i]);
#pragma unroll
  for (int by = Lanes / 4; by > 0; by /= 2) {
    edge = one_of(!first, edge, __shfl_xor_sync(cuda::kAllLanes, edge, by));
  }
  const T across = __shfl_xor_sync(cuda::kAllLanes, edge, Lanes / 2);
  if (!both) return static_cast<double>(first ? edge : across);
  return (static_cast<double>(edge) + static_cast<double>(across)) / 2;
}

template <int Lanes, class T>
__device__ __forceinline__ double merged_mean(T (&values)[kOwn], const RankMeanArgs<T>& p) {
  merge_lanes<Lanes>(values);
  const int rank = threadIdx.x % Lanes * kOwn;
  double sum = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (rank + i >= p.begin && rank + i < p.end) sum += static_cast<double>(values[i]);
  }
  return team_sum<Lanes>(sum) / static_cast<double>(p.end - p.begin);
}

// kMiddle: one rank or two, which infinities on both sides move into the middle.
template <int Lanes, bool kMiddle, class T>
__global__ void __launch_bounds__(kTeamThreads) team_mean_kernel(RankMeanArgs<T> p) {
  using Columns = Stage<Lanes, T>;
  T* staged = cuda::shared_memory<T>();
  Columns::fill(staged, p, kMiddle ? Columns::kPlaces / 2 - 1 - p.begin : 0);
  T values[kOwn];
  const int64_t numbers = p.from.clients - Columns::take(staged, values);
  sort_values(values);
  double mean;
  if constexpr (kMiddle) {
    mean = middle_mean<Lanes>(values, p.end - p.begin == 2);
  } else {
    mean = merged_mean<Lanes>(values, p);
  }
  const int64_t column = int64_t{blockIdx.x} * Columns::kColumns + threadIdx.x / Lanes;
  if (threadIdx.x % Lanes == 0 && column < p.from.columns) {
    p.out[column] = numbers >= p.end ? static_cast<T>(mean) : kNan<T>;
  }
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

template <class T>
__global__ void __launch_bounds__(kSelectThreads) selected_mean_kernel(RankMeanArgs<T> p) {
  const int64_t column = int64_t{blockIdx.x} * kSelectThreads + threadIdx.x;
  if (column >= p.from.columns) return;
  const T* values = p.from.x + column;
  const int64_t columns = p.from.columns;
  int64_t numbers = 0;
#pragma unroll 8
  for (int64_t g = 0; g < p.from.clients; ++g)
    numbers += values[g * columns] == values[g * columns];
  const double mean = selected_mean([&](int64_t g) { return key_of(values[g * columns]); }, p);
  p.out[column] = numbers >= p.end ? static_cast<T>(mean) : kNan<T>;
}

template <int N, class T>
void sort(const RankMeanArgs<T>& args, cuda::Stream stream) {
  launch(sorted_mean_kernel<N, T>, grid_size(ceil_div(args.from.columns, kSortThreads)),
         kSortThreads, 0, stream, args);
}

template <int Lanes, class T>
void sort_in_teams(const RankMeanArgs<T>& args, cuda::Stream stream) {
  using Columns = Stage<Lanes, T>;
  const int64_t below = Columns::kPlaces / 2 - 1 - args.begin;
  const bool middle =
      args.end - args.begin <= 2 && below >= 0 && below <= Columns::kPlaces - args.from.clients;
  launch(middle ? team_mean_kernel<Lanes, true, T> : team_mean_kernel<Lanes, false, T>,
         grid_size(ceil_div(args.from.columns, Columns::kColumns)), kTeamThreads, Columns::kBytes,
         stream, args);
}

}  // namespace

template <class T>
void rank_mean(const RankMeanArgs<T>& args, cuda::Stream stream) {
  const int64_t clients = args.from.clients;
  if (clients <= 4) return sort<4>(args, stream);
  if (clients <= 8) return sort<8>(args, stream);
  if (clients <= 16) return sort<16>(args, stream);
  if (clients <= 32) return sort<32>(args, stream);
  if constexpr (sizeof(T) == sizeof(float)) {  // double: twice the registers, minutes to compile
    if (clients <= 64) return sort<64>(args, stream);
    if (clients <= 4 * kOwn) return sort_in_teams<4>(args, stream);
    if (clients <= 8 * kOwn) return sort_in_teams<8>(args, stream);
    if (clients <= 16 * kOwn) return sort_in_teams<16>(args, stream);
    if (clients <= 32 * kOwn) return sort_in_teams<32>(args, stream);
  }
  launch(selected_mean_kernel<T>, grid_size(ceil_div(args.from.columns, kSelectThreads)),
         kSelectThreads, 0, stream, args);
}

template void rank_mean(const RankMeanArgs<float>&, cuda::Stream);
template void rank_mean(const RankMeanArgs<double>&, cuda::Stream);

}  // namespace metadnas::aggregate_cuda
