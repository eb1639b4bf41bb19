// Weight gradients of all spans added up.
#pragma once

#include "mixed_op/cuda/frame.h"

namespace metadnas::mixed_op {

// A span's row of weight gradients, where the elements belong in the parameters.
struct WeightGradPiece {
  int64_t from;  // in the row
  int64_t to;    // in a client's parameters
  int64_t count;
};

template <class A>
struct ReduceParams {
  static constexpr int kMostPieces = 128;

  const A* weight_grads;  // (G, spans, row)
  int64_t spans;
  int64_t row;
  int64_t clients;
  A* grad_params;
  int64_t grad_params_stride;
  int pieces;
  WeightGradPiece piece[kMostPieces];
};

// Adds the spans up, in their order.
template <class A>
void reduce_weight_grads(const ReduceParams<A>& params, Stream stream);

}  // namespace metadnas::mixed_op
