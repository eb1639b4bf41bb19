// Weighted mean: one pass over the data, in client order.
#pragma once

#include "aggregate/cpu/vectors.h"

namespace metadnas::METADNAS_ISA {

inline constexpr int64_t kMeanColumns = 2048;  // whose sums stay in the first-level cache
inline constexpr int kMeanRows = 4;            // clients read at a time

// total += share * row for N clients in order: each sum is loaded and stored once for all of them.
template <int N, class T>
METADNAS_INLINE inline void add_rows(const T* const* rows, const double* shares, int64_t width,
                                     double* total) {
  int64_t c = 0;
  for (; c + kWide <= width; c += kWide) {
    Vec<double> sum = load(total + c);
    unroll<N>([&]<int I>() { sum += shares[I] * load_wide(rows[I] + c); });
    store(total + c, sum);
  }
  for (; c < width; ++c) {
    unroll<N>([&]<int I>() { total[c] += shares[I] * static_cast<double>(rows[I][c]); });
  }
}

template <class T>
void mean_strip(const MeanArgs<T>& args, int64_t begin) {
  const int64_t width =
      args.from.columns - begin < kMeanColumns ? args.from.columns - begin : kMeanColumns;
  alignas(64) double total[kMeanColumns] = {};
  const T* rows[kMeanRows];
  double shares[kMeanRows];
  int held = 0;
  for (int64_t g = 0; g < args.from.clients; ++g) {
    // 0 * NaN is NaN: a client of weight 0 must not reach the result.
    if (args.share[g] == 0) continue;
    rows[held] = args.from.row(g) + begin;
    shares[held++] = args.share[g];
    if (held < kMeanRows) continue;
    add_rows<kMeanRows>(rows, shares, width, total);
    held = 0;
  }
  for (int i = 0; i < held; ++i) add_rows<1>(rows + i, shares + i, width, total);
  for (int64_t c = 0; c < width; ++c) args.out[begin + c] = static_cast<T>(total[c]);
}

template <class T>
void mean(const MeanArgs<T>& args) {
  parallel_for_each((args.from.columns + kMeanColumns - 1) / kMeanColumns,
                    [&](int64_t i) { mean_strip(args, i * kMeanColumns); });
}

}  // namespace metadnas::METADNAS_ISA
