// Passes over the results of all edges of a fan, pixel by pixel: stage C, and the sums that the
// backward pass starts with.
#pragma once

#include "mixed_op/cuda/tiles.h"
#include "mixed_op/cuda/walk.h"

namespace metadnas::mixed_op {

// A batch-normed value of an edge.
struct TermAt {
  int norm = kAbsent;  // kAbsent: there is none
  int64_t weight = kAbsent;
};

// All that an edge adds up.
template <class S>
struct EdgeTerms {
  static constexpr int kMostUnits = 5;  // separable and dilated convolutions, factorized reduce

  int units;
  struct {
    TermAt at;
    const S* z;  // (G, N, H', W', C)
  } unit[kMostUnits];
  TermAt max_pool;
  TermAt avg_pool;
  int64_t identity;  // mixing weight, or kAbsent
};

template <class S>
struct EdgesParams {
  static constexpr int kMostEdges = 10;

  Frame<S> frame;
  PoolShape shape;
  int out_height;
  int out_width;
  Images<const S> x;
  bool pools;
  WalkCut walk;
  int rows;             // sums only
  Accumulate<S>* sums;  // (G, N, pieces, rows, C)
  int edges;
  struct {
    EdgeTerms<S> terms;
    Images<S> out;         // stage C
    bool add;              // to what is there
    Images<const S> grad;  // sums
    int grad_row;          // and behind it that of the identity
  } edge[kMostEdges];
};

// How stage C walks, and how the sums do.
WalkCut cut_combine(const Geometry& geometry, int vector);
WalkCut cut_sums(const Geometry& geometry, int vector);

// out = or += sum of weight * batch norm(value), of all edges.
template <class S>
void combine(const EdgesParams<S>& params, int vector, Stream stream);

// Per piece and channel: in each norm's row the sum of grad * (value - mean), in the edges' rows
// that of grad, and of grad * x if there is an identity.
template <class S>
void gradient_sums(const EdgesParams<S>& params, int vector, Stream stream);

}  // namespace metadnas::mixed_op
