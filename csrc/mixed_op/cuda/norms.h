// Between stages: batch norms' statistics and vectors from the tiles' moments, and batch norm's
// gradient from the tiles' sums. Double precision, in the order of the tiles.
#pragma once

#include "mixed_op/cuda/tiles.h"

namespace metadnas::mixed_op {

// Channels that a block of kThreads takes at once; its other threads share the adding up.
inline int norm_width(int channels) {
  int width = 1;
  while (width < channels && width < 32) width *= 2;
  return width;
}

struct NormTask {
  int norm;
  int partial;
  int64_t slot;
  int64_t affine;
};

template <class S>
struct SettleParams {
  static constexpr int kMostTasks = 96;

  Frame<S> frame;
  Tiles tiles;
  double eps;
  Accumulate<S>* stats;  // (G, slots, 2, C)
  int64_t stats_stride;
  int partials;
  const Accumulate<S>* moments;  // (G, N, tiles, partials, 2, C); null: the statistics are given
  int width;                     // norm_width
  int tasks;
  NormTask task[kMostTasks];
};

// Statistics, and the vectors of Frame::vectors.
template <class S>
void settle_norms(const SettleParams<S>& params, Stream stream);

// A batch norm whose gradient is to be closed, or the mixing weight of an identity or of nothing.
struct CloseTask {
  int norm;         // kAbsent: none
  int grad_row;     // rows of the sums: of the gradient,
  int product_row;  // and of gradient * (value - mean); kAbsent: nothing reaches this
  int64_t weight;   // mixing weight behind it; kAbsent: 1
  int64_t affine;   // parameter offset of gamma
};

template <class S>
struct CloseParams {
  static constexpr int kMostTasks = 80;

  Frame<S> frame;
  int64_t pixels;  // of an image
  bool training;
  int pieces;  // of an image, each with a row of sums
  int rows;
  const Accumulate<S>* sums;  // (G, N, pieces, rows, C)
  Accumulate<S>* grad_weights;
  Accumulate<S>* grad_params;  // null: not wanted
  int64_t grad_params_stride;
  int width;  // norm_width
  int tasks;
  CloseTask task[kMostTasks];
};

// Gradients of mixing weights, gamma and beta, and the coefficients of Frame::gradients.
template <class S>
void close_norms(const CloseParams<S>& params, Stream stream);

}  // namespace metadnas::mixed_op
