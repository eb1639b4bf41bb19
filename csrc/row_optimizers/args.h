// Steps of optimisers on the rows of a cohort's flat parameters. Shared by every device; no torch
// headers.
#pragma once

#include <cstdint>

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

// The kernels of one instruction set for one element type.
template <class T>
struct Kernels {
  void (*adam)(const AdamArgs<T>&);
  void (*sgd)(const SgdArgs<T>&);
  // (count, width) -> sum of squares of each row
  void (*square_sums)(const T* rows, int64_t count, int64_t width, double* sums);
};

}  // namespace metadnas::row_optimizers
