// Weighted mean: one pass over the data, in client order.
#pragma once

#include "aggregate/cpu/vectors.h"

namespace metadnas::METADNAS_ISA {

inline constexpr int64_t kMeanColumns = 8192;  // whose sums, 64 KiB, stay in cache
inline constexpr int kMeanRows = 8;            // clients read at a time

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

template <class T>
void mean_strip(const MeanArgs<T>& args, int64_t begin) {
  const int64_t left = args.columns - begin;
  const int64_t width = left < kMeanColumns ? left : kMeanColumns;
  alignas(64) double total[kMeanColumns] = {};
  // kMeanRows rows from client i on; past the last client, that one again.
  const auto strips = [&](int64_t i, const T** rows) {
    for (int64_t r = 0; r < kMeanRows; ++r) {
      rows[r] = args.rows[i + r < args.clients ? i + r : args.clients - 1] + begin;
    }
  };
  for (int64_t i = 0; i < args.clients; i += kMeanRows) {
    const T *rows[kMeanRows], *next[kMeanRows];
    strips(i, rows);
    strips(i + kMeanRows, next);
    const int64_t left = args.clients - i;
    unroll<kMeanRows>([&]<int I>() {
      constexpr int N = I + 1;
      if (N == kMeanRows ? left >= N : left == N) {
        add_rows<N>(rows, next, args.share + i, width, total);
      }
    });
  }
  for (int64_t c = 0; c < width; ++c) args.out[begin + c] = static_cast<T>(total[c]);
}

template <class T>
void mean(const MeanArgs<T>& args) {
  parallel_for_each((args.columns + kMeanColumns - 1) / kMeanColumns,
                    [&](int64_t i) { mean_strip(args, i * kMeanColumns); });
}

}  // namespace metadnas::METADNAS_ISA
