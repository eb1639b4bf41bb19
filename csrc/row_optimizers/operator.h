// Optimiser steps on the rows of a cohort, in place: the operators' checks, for every device. A
// device has adam(tensor, rows, mean, square, steps, options) and sgd(tensor, rows, velocity,
// rates, options).
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "common/checks.h"
#include "row_optimizers/args.h"

namespace metadnas::row_optimizers {

inline std::vector<int64_t> shape_of(const Tensor& t) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < t.dim(); ++d) sizes.push_back(t.size(d));
  return sizes;
}

// What is written in place: of rows' shape, dtype and device, and dense.
inline void check_state(const char* op, const char* name, const Tensor& t, const Tensor& rows) {
  check_shape(op, name, t, shape_of(rows));
  check(t.scalar_type() == rows.scalar_type(), op, ": ", name, " is ", dtype_text(t.scalar_type()),
        ", expected ", dtype_text(rows.scalar_type()), " as rows");
  check(same_device(t, rows), op, ": ", name, " is not on the device of rows");
  check(t.is_contiguous(), op, ": ", name, " is not contiguous");
}

// grad's rows are the first ones of `rows`.
inline void check_rows(const char* op, const Tensor& rows, const Tensor& grad) {
  check(rows.dim() >= 1, op, ": rows has shape ", shape_text(rows), ", expected (G, ...)");
  check_floating(op, "rows", rows);
  check_state(op, "rows", rows, rows);
  const int64_t active = grad.dim() >= 1 ? grad.size(0) : 0;
  check(active <= rows.size(0), op, ": grad has ", active, " rows, expected at most ",
        rows.size(0));
  std::vector<int64_t> wanted = shape_of(rows);
  wanted[0] = active;
  check_shape(op, "grad", grad, wanted);
  check(grad.scalar_type() == rows.scalar_type() && same_device(grad, rows), op,
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

template <class Device>
void adam_rows(Tensor rows, Tensor grad, Tensor mean, Tensor square, Tensor steps, double lr,
               double beta1, double beta2, double weight_decay, double eps, double clip) {
  constexpr const char* kOp = "adam_rows_";
  check_rows(kOp, rows, grad);
  check_state(kOp, "mean", mean, rows);
  check_state(kOp, "square", square, rows);
  check_shape(kOp, "steps", steps, {rows.size(0)});
  check(steps.scalar_type() == torch::headeronly::ScalarType::Float && same_device(steps, rows) &&
            steps.is_contiguous(),
        kOp, ": steps is not a contiguous Float tensor on the device of rows");
  const Tensor dense = torch::stable::contiguous(grad);
  with_element_type(rows, [&]<class T>() {
    Device::adam(rows, rows_of<T>(rows, dense, weight_decay), data<T>(mean), data<T>(square),
                 data<float>(steps), AdamOptions{lr, beta1, beta2, eps, clip});
  });
}

template <class Device>
void sgd_rows(Tensor rows, Tensor grad, Tensor velocity, std::vector<double> rates, double momentum,
              double weight_decay, double clip) {
  constexpr const char* kOp = "sgd_rows_";
  check_rows(kOp, rows, grad);
  check_state(kOp, "velocity", velocity, rows);
  check(static_cast<int64_t>(rates.size()) == grad.size(0), kOp, ": ", rates.size(), " rates for ",
        grad.size(0), " rows of grad");
  const Tensor dense = torch::stable::contiguous(grad);
  with_element_type(rows, [&]<class T>() {
    Device::sgd(rows, rows_of<T>(rows, dense, weight_decay), data<T>(velocity), rates,
                SgdOptions{momentum, clip});
  });
}

}  // namespace metadnas::row_optimizers
