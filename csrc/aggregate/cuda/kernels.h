// The kernels as the host sees them. No torch headers.
#pragma once

#include "aggregate/args.h"
#include "common/cuda/runtime.h"

namespace metadnas::aggregate_cuda {

inline constexpr int64_t kPartClients = 256;   // of a partial sum where there are few columns
inline constexpr int64_t kPartColumns = 8192;  // few

// By shape alone: partial sums over clients that a mean takes.
inline int64_t mean_parts(int64_t clients, int64_t columns) {
  return columns > kPartColumns ? 1 : (clients + kPartClients - 1) / kPartClients;
}

// weights (M, G) -> shares (M, G), rows sum to 1; NaN for a row that is not finite and at least 0
// with a positive sum.
template <class T>
void scale_shares(const T* weights, int64_t mixtures, int64_t clients, double* shares,
                  cuda::Stream stream);

// partial: (parts, P) of more than one part.
template <class T>
void mean(const MeanInputs<T>& in, const double* shares, int64_t parts, double* partial,
          cuda::Stream stream);

template <class T>
void mixtures(const MixturesInputs<T>& in, const double* shares, cuda::Stream stream);

template <class T>
void rank_mean(const RankMeanArgs<T>& args, cuda::Stream stream);

template <class T>
void gram(const GramArgs<T>& args, cuda::Stream stream);

}  // namespace metadnas::aggregate_cuda
