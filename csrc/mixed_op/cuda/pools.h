// Moments of both pools of x, and the gradients that reach the pooled values.
#pragma once

#include "mixed_op/cuda/tiles.h"
#include "mixed_op/cuda/walk.h"

namespace metadnas::mixed_op {

template <class S>
struct PoolMomentsParams {
  Frame<S> frame;
  PoolShape shape;
  Tiles tiles;    // of the output
  Divisor chunk;  // channels of a block
  Images<const S> x;
  int partials;
  int max_partial;  // kAbsent: not wanted
  int avg_partial;
  Accumulate<S>* moments;  // (G, N, tiles, partials, 2, C)
};

// Pools of all edges, by output pixel: what the gradient of x needs to know.
template <class S>
struct PoolGradients {
  S* to_max;              // (G, N, H', W', C) gradient that reaches the largest value
  S* to_mean;             // and each value of the mean
  unsigned char* winner;  // tap of the largest
};

template <class S>
struct PoolGradientParams {
  static constexpr int kMostEdges = 32;

  Frame<S> frame;
  PoolShape shape;
  int out_height;
  int out_width;
  WalkCut walk;  // a pixel a thread
  Images<const S> x;
  PoolGradients<S> to;
  int edges;
  struct {
    Images<const S> grad;
    int max_norm;  // kAbsent: no such pool
    int avg_norm;
  } edge[kMostEdges];
};

// Channels of a block of pool_moments.
int pool_chunk(int channels);
WalkCut cut_pool_gradient(const Geometry& geometry, int vector);

template <class S>
void pool_moments(const PoolMomentsParams<S>& params, int vector, Stream stream);
template <class S>
void pool_gradient(const PoolGradientParams<S>& params, int vector, Stream stream);

}  // namespace metadnas::mixed_op
