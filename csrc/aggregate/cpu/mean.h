// Weighted mean: one pass over the data, in client order.
#pragma once

#include "aggregate/cpu/vectors.h"

namespace metadnas::METADNAS_ISA {

inline constexpr int64_t kMeanColumns = 8192;  // whose sums, 64 KiB, stay in cache
inline constexpr int kMeanRows = 8;            // clients read at a time
inline constexpr int64_t kMeanClients = 512;   // clients of a task where there are few columns

// total += share * row for N clients in order: each sum is loaded and stored once for all of them.
// `next`: the rows read after these, fetched meanwhile.
template <int N, class T>
METADNAS_INLINE inline void add_rows(const T* const* rows, const T* const* next,
                                     const double* shares, int64_t width, double* total) {
  constexpr int64_t kLine = 64 / sizeof(T);
  int64_t c = 0;
  for (; c + kLine <= width; c += kLine) {
    unroll<N>([&]<int I>() { __builtin_prefetch(next[I] + c, 0, 2); });
    unroll<kLine / kWide>([&]<int V>() {
      Vec<double> sum = load(total + c + V * kWide);
      unroll<N>([&]<int I>() { sum += shares[I] * load_wide(rows[I] + c + V * kWide); });
      store(total + c + V * kWide, sum);
    });
  }
  for (; c < width; ++c) {
    unroll<N>([&]<int I>() { total[c] += shares[I] * static_cast<double>(rows[I][c]); });
  }
}

// Columns [begin, begin + width) of clients [first, last), added up into `total`.
template <class T>
void sum_strip(const MeanArgs<T>& args, int64_t first, int64_t last, int64_t begin, int64_t width,
               double* total) {
  for (int64_t c = 0; c < width; ++c) total[c] = 0;
  // kMeanRows rows from client i on; past the last client, that one again.
  const auto strips = [&](int64_t i, const T** rows) {
    for (int64_t r = 0; r < kMeanRows; ++r) {
      rows[r] = args.rows[i + r < last ? i + r : last - 1] + begin;
    }
  };
  for (int64_t i = first; i < last; i += kMeanRows) {
    const T *rows[kMeanRows], *next[kMeanRows];
    strips(i, rows);
    strips(i + kMeanRows, next);
    const int64_t left = last - i;
    unroll<kMeanRows>([&]<int I>() {
      constexpr int N = I + 1;
      if (N == kMeanRows ? left >= N : left == N) {
        add_rows<N>(rows, next, args.share + i, width, total);
      }
    });
  }
}

// Many clients of few columns: sums of kMeanClients at a time, then of these, in order.
template <class T>
void mean_of_parts(const MeanArgs<T>& args, int64_t parts) {
  Arena& arena = call_arena();
  arena.reset(static_cast<size_t>(parts * args.columns) * sizeof(double) + 64);
  double* totals = arena.take<double>(parts * args.columns);
  parallel_for_each(parts, [&](int64_t i) {
    const int64_t first = i * kMeanClients;
    const int64_t last = first + kMeanClients < args.clients ? first + kMeanClients : args.clients;
    sum_strip(args, first, last, 0, args.columns, totals + i * args.columns);
  });
  for (int64_t i = 1; i < parts; ++i) {
    for (int64_t c = 0; c < args.columns; ++c) totals[c] += totals[i * args.columns + c];
  }
  for (int64_t c = 0; c < args.columns; ++c) args.out[c] = static_cast<T>(totals[c]);
}

template <class T>
void mean(const MeanArgs<T>& args) {
  const int64_t parts = (args.clients + kMeanClients - 1) / kMeanClients;
  if (args.columns <= kMeanColumns && parts > 1) return mean_of_parts(args, parts);
  parallel_for_each((args.columns + kMeanColumns - 1) / kMeanColumns, [&](int64_t i) {
    const int64_t begin = i * kMeanColumns;
    const int64_t left = args.columns - begin;
    const int64_t width = left < kMeanColumns ? left : kMeanColumns;
    alignas(64) double total[kMeanColumns];
    sum_strip(args, 0, args.clients, begin, width, total);
    for (int64_t c = 0; c < width; ++c) args.out[begin + c] = static_cast<T>(total[c]);
  });
}

}  // namespace metadnas::METADNAS_ISA
