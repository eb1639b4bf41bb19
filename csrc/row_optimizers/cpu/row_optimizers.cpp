// Optimiser steps on the rows of a cohort, in place, on the CPU: checks, what a row needs to know,
// dispatch to the kernels of this processor.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <vector>

#include "common/checks.h"
#include "row_optimizers/cpu/kernels.h"

namespace metadnas::row_optimizers {
namespace {

using torch::headeronly::ScalarType;

std::vector<int64_t> shape_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
  return sizes;
}

// What is written in place: of rows' shape, dtype and device, and dense.
void check_state(const char* op, const char* name, const Tensor& t, const Tensor& rows) {
  check_shape(op, name, t, shape_of(rows));
  STD_TORCH_CHECK(t.scalar_type() == rows.scalar_type(), op, ": ", name, " is ",
                  dtype_text(t.scalar_type()), ", expected ", dtype_text(rows.scalar_type()),
                  " as rows");
  STD_TORCH_CHECK(t.is_cpu(), op, ": ", name, " is not on the CPU");
  STD_TORCH_CHECK(t.is_contiguous(), op, ": ", name, " is not contiguous");
}

// grad's rows are the first ones of `rows`.
void check_rows(const char* op, const Tensor& rows, const Tensor& grad) {
  STD_TORCH_CHECK(rows.dim() >= 1, op, ": rows has shape ", shape_text(rows),
                  ", expected (G, ...)");
  check_floating(op, "rows", rows);
  check_state(op, "rows", rows, rows);
  const int64_t active = grad.dim() >= 1 ? grad.size(0) : 0;
  STD_TORCH_CHECK(active <= rows.size(0), op, ": grad has ", active, " rows, expected at most ",
                  rows.size(0));
  std::vector<int64_t> wanted = shape_of(rows);
  wanted[0] = active;
  check_shape(op, "grad", grad, wanted);
  STD_TORCH_CHECK(grad.scalar_type() == rows.scalar_type() && grad.is_cpu(), op,
                  ": grad is not of rows' dtype and device");
}

template <class T>
T* data(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

template <class T>
Rows<T> rows_of(const Tensor& rows, const Tensor& grad, double weight_decay) {
  const int64_t count = grad.size(0);
  return {count, count ? grad.numel() / count : 0, data<T>(rows), grad.const_data_ptr<T>(),
          weight_decay};
}

// The factor that brings each row of grad to a norm of at most `limit`; 0: no limit. As
// torch.nn.utils.clip_grad_norm_.
template <class T>
std::vector<double> clip_scales(const Rows<T>& rows, double limit) {
  std::vector<double> scales(static_cast<size_t>(rows.count), 1);
  if (!(limit > 0)) return scales;
  kernels<T>(widest_isa()).square_sums(rows.grad, rows.count, rows.width, scales.data());
  for (double& scale : scales) {
    const double wanted = limit / (std::sqrt(scale) + 1e-6);
    scale = wanted > 1 ? 1 : wanted;  // NaN stays NaN
  }
  return scales;
}

template <class F>
void with_element(const Tensor& t, F&& f) {
  t.scalar_type() == ScalarType::Float ? f.template operator()<float>()
                                       : f.template operator()<double>();
}

void adam_rows(Tensor rows, Tensor grad, Tensor mean, Tensor square, Tensor steps, double lr,
               double beta1, double beta2, double weight_decay, double eps, double clip) {
  constexpr const char* kOp = "adam_rows_";
  check_rows(kOp, rows, grad);
  check_state(kOp, "mean", mean, rows);
  check_state(kOp, "square", square, rows);
  check_shape(kOp, "steps", steps, {rows.size(0)});
  STD_TORCH_CHECK(
      steps.scalar_type() == ScalarType::Float && steps.is_cpu() && steps.is_contiguous(), kOp,
      ": steps is not a contiguous Float tensor on the CPU");
  const Tensor dense = torch::stable::contiguous(grad);
  with_element(rows, [&]<class T>() {
    const Rows<T> shared = rows_of<T>(rows, dense, weight_decay);
    const std::vector<double> scales = clip_scales(shared, clip);
    std::vector<AdamRow> own;
    for (int64_t r = 0; r < shared.count; ++r) {
      const double t = static_cast<double>(++data<float>(steps)[r]);
      own.push_back({scales[static_cast<size_t>(r)], lr / (1 - std::pow(beta1, t)),
                     1 / std::sqrt(1 - std::pow(beta2, t))});
    }
    kernels<T>(widest_isa())
        .adam({shared, data<T>(mean), data<T>(square), beta1, beta2, eps, own.data()});
  });
}

void sgd_rows(Tensor rows, Tensor grad, Tensor velocity, std::vector<double> rates, double momentum,
              double weight_decay, double clip) {
  constexpr const char* kOp = "sgd_rows_";
  check_rows(kOp, rows, grad);
  check_state(kOp, "velocity", velocity, rows);
  STD_TORCH_CHECK(static_cast<int64_t>(rates.size()) == grad.size(0), kOp, ": ", rates.size(),
                  " rates for ", grad.size(0), " rows of grad");
  const Tensor dense = torch::stable::contiguous(grad);
  with_element(rows, [&]<class T>() {
    const Rows<T> shared = rows_of<T>(rows, dense, weight_decay);
    const std::vector<double> scales = clip_scales(shared, clip);
    std::vector<SgdRow> own;
    for (size_t r = 0; r < rates.size(); ++r) own.push_back({scales[r], rates[r]});
    kernels<T>(widest_isa()).sgd({shared, data<T>(velocity), momentum, own.data()});
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("adam_rows_", TORCH_BOX(&adam_rows));
  m.impl("sgd_rows_", TORCH_BOX(&sgd_rows));
}

}  // namespace metadnas::row_optimizers
