// Optimiser steps on the CPU: what a row needs to know, dispatch to the kernels of this processor.
#include <torch/csrc/stable/library.h>

#include <cmath>

#include "row_optimizers/cpu/kernels.h"
#include "row_optimizers/operator.h"

namespace metadnas::row_optimizers {
namespace {

// The factor that brings each row of grad to a norm of at most `limit`; 0: no limit. As
// torch.nn.utils.clip_grad_norm_.
template <class T>
std::vector<double> clip_scales(const Rows<T>& rows, double limit) {
  std::vector<double> scales(static_cast<size_t>(rows.count), 1);
  if (!(limit > 0)) return scales;
  kernels<T>(widest_isa()).square_sums(rows.grad, rows.count, rows.width, scales.data());
  for (double& scale : scales) scale = clip_scale(scale, limit);
  return scales;
}

struct Cpu {
  template <class T>
  static void adam(const Tensor&, const Rows<T>& rows, T* mean, T* square, float* steps,
                   const AdamOptions& options) {
    const std::vector<double> scales = clip_scales(rows, options.clip);
    std::vector<AdamRow> own;
    for (int64_t r = 0; r < rows.count; ++r) {
      own.push_back(adam_row(scales[static_cast<size_t>(r)], ++steps[r], options));
    }
    kernels<T>(widest_isa())
        .adam({rows, mean, square, options.beta1, options.beta2, options.eps, own.data()});
  }

  template <class T>
  static void sgd(const Tensor&, const Rows<T>& rows, T* velocity, const std::vector<double>& rates,
                  const SgdOptions& options) {
    const std::vector<double> scales = clip_scales(rows, options.clip);
    std::vector<SgdRow> own;
    for (size_t r = 0; r < rates.size(); ++r) own.push_back({scales[r], rates[r]});
    kernels<T>(widest_isa()).sgd({rows, velocity, options.momentum, own.data()});
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("adam_rows_", TORCH_BOX(&adam_rows<Cpu>));
  m.impl("sgd_rows_", TORCH_BOX(&sgd_rows<Cpu>));
}

}  // namespace metadnas::row_optimizers
