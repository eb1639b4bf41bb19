// Optimiser steps on CUDA: scratch memory and launches.
#include <torch/csrc/stable/library.h>

#include "common/cuda/call.h"
#include "row_optimizers/cuda/steps.h"
#include "row_optimizers/operator.h"

namespace metadnas::row_optimizers {
namespace {

template <class T>
RowNorms clip_norms(cuda::Call& call, const Rows<T>& rows, double limit) {
  RowNorms norms = norms_of(rows, limit);
  if (norms.pieces == 0) return norms;
  norms.sums = call.scratch<double>(rows.count * norms.pieces);
  square_sums(rows, norms, call.stream());
  return norms;
}

struct Cuda {
  template <class T>
  static void adam(const Tensor& tensor, const Rows<T>& rows, T* mean, T* square, float* steps,
                   const AdamOptions& options) {
    cuda::Call call(tensor);
    const RowNorms norms = clip_norms(call, rows, options.clip);
    auto* own = call.scratch<AdamRow>(rows.count);
    prepare_adam(rows.count, norms, steps, options, own, call.stream());
    row_optimizers::adam(
        AdamArgs<T>{rows, mean, square, options.beta1, options.beta2, options.eps, own},
        call.stream());
  }

  template <class T>
  static void sgd(const Tensor& tensor, const Rows<T>& rows, T* velocity,
                  const std::vector<double>& rates, const SgdOptions& options) {
    cuda::Call call(tensor);
    const RowNorms norms = clip_norms(call, rows, options.clip);
    auto* own = call.scratch<SgdRow>(rows.count);
    prepare_sgd(rows.count, norms, rates.data(), own, call.stream());
    row_optimizers::sgd(SgdArgs<T>{rows, velocity, options.momentum, own}, call.stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, METADNAS_CUDA_KEY, m) {
  m.impl("adam_rows_", TORCH_BOX(&adam_rows<Cuda>));
  m.impl("sgd_rows_", TORCH_BOX(&sgd_rows<Cuda>));
}

}  // namespace metadnas::row_optimizers
