// Steps of optimisers on the rows of a cohort's flat parameters. Shared by every device; no torch
// headers.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/host_device.h"

namespace metadnas::row_optimizers {

// Row r of every tensor starts r * width elements behind its pointer.
template <class T>
struct Rows {
  int64_t count;  // rows that take the step
  int64_t width;
  T* parameters;
  const T* grad;
  double weight_decay;
};

struct AdamOptions {
  double lr;
  double beta1;
  double beta2;
  double eps;
  double clip;  // largest norm of a row of grad; 0: any
};

struct SgdOptions {
  double momentum;
  double clip;
};

struct AdamRow {
  double grad_scale;  // clipping
  double step_size;   // rate / (1 - beta1^t)
  double correction;  // 1 / sqrt(1 - beta2^t)
};

template <class T>
struct AdamArgs : Rows<T> {
  T* mean;
  T* square;
  double beta1;
  double beta2;
  double eps;
  const AdamRow* rows;  // (count)
};

struct SgdRow {
  double grad_scale;
  double rate;
};

template <class T>
struct SgdArgs : Rows<T> {
  T* velocity;
  double momentum;
  const SgdRow* rows;  // (count)
};

// The factor that brings a row of this sum of squares to a norm of at most `limit`. As
// torch.nn.utils.clip_grad_norm_.
METADNAS_HOST_DEVICE inline double clip_scale(double squares, double limit) {
  const double wanted = limit / (std::sqrt(squares) + 1e-6);
  return wanted > 1 ? 1 : wanted;  // NaN stays NaN
}

// For the t-th step of a row.
METADNAS_HOST_DEVICE inline AdamRow adam_row(double grad_scale, double t,
                                             const AdamOptions& options) {
  return {grad_scale, options.lr / (1 - std::pow(options.beta1, t)),
          1 / std::sqrt(1 - std::pow(options.beta2, t))};
}

// The kernels of one instruction set for one element type.
template <class T>
struct Kernels {
  void (*adam)(const AdamArgs<T>&);
  void (*sgd)(const SgdArgs<T>&);
  // (count, width) -> sum of squares of each row
  void (*square_sums)(const T* rows, int64_t count, int64_t width, double* sums);
};

}  // namespace metadnas::row_optimizers
