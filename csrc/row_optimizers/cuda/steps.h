// The steps as the host sees them. No torch headers.
#pragma once

#include "common/cuda/runtime.h"
#include "row_optimizers/args.h"

namespace metadnas::row_optimizers {

inline constexpr int64_t kNormColumns = 8192;  // of a piece whose squares a block adds up
inline constexpr int kRatesAtOnce = 256;       // rates that travel with a launch

// The sums of squares of each row's pieces; without a limit there are none.
struct RowNorms {
  double limit;
  int64_t pieces;
  double* sums;  // (count, pieces)
};

template <class T>
RowNorms norms_of(const Rows<T>& rows, double limit) {
  return {limit, limit > 0 ? (rows.width + kNormColumns - 1) / kNormColumns : 0, nullptr};
}

template <class T>
void square_sums(const Rows<T>& rows, const RowNorms& norms, cuda::Stream stream);

// steps (count) goes up by 1; to (count).
void prepare_adam(int64_t count, const RowNorms& norms, float* steps, const AdamOptions& options,
                  AdamRow* to, cuda::Stream stream);
// rates (count) are on the host.
void prepare_sgd(int64_t count, const RowNorms& norms, const double* rates, SgdRow* to,
                 cuda::Stream stream);

template <class T>
void adam(const AdamArgs<T>& args, cuda::Stream stream);
template <class T>
void sgd(const SgdArgs<T>& args, cuda::Stream stream);

}  // namespace metadnas::row_optimizers
