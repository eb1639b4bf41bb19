// The gradient of units' inputs: through the depthwise convolution, relu, and what lies before.
#pragma once

#include "mixed_op/cuda/pools.h"
#include "mixed_op/cuda/tiles.h"

namespace metadnas::mixed_op {

template <class S>
struct SpreadUnit {
  int kernel;  // 0: factorized reduce
  int dilation;
  int64_t depthwise;
  const S* grad_d;  // (G, N, H', W', C), see GradientUnit
};

// A block takes a tile of the input, some channels of it.
struct SpreadCut {
  Tiles tiles;
  Window window;  // of grad_d, at the resolution of the input
  Divisor chunk;
  int taps;  // where the taps are in shared memory
  int total;
};

template <class S>
struct SpreadParams {
  Frame<S> frame;
  SpreadCut cut;
  int stride;  // between input and grad_d: 1 or 2
  int out_height;
  int out_width;
};

// Between the two halves of separable convolutions: one unit a block.
template <class S>
struct SpreadMiddleParams : SpreadParams<S> {
  static constexpr int kMostUnits = 32;

  int rows;
  Accumulate<S>*
      sums;  // (G, N, tiles, rows, C): of a unit's gradient, then of gradient * (z - mean)
  int units;
  struct {
    SpreadUnit<S> spread;
    int norm;    // of the first half
    const S* z;  // of the first half
    S* to;       // gradient of its batch norm
    int row;
  } unit[kMostUnits];
};

template <class S>
struct SpreadInputParams : SpreadParams<S> {
  static constexpr int kMostUnits = 48;
  static constexpr int kMostIdentities = 32;

  Images<const S> x;
  Images<const S> base;  // added, unless absent
  Images<S> to;
  bool max_pool;
  bool avg_pool;
  PoolGradients<S> pools;
  int units;
  SpreadUnit<S> unit[kMostUnits];
  int identities;
  struct {
    Images<const S> grad;
    int64_t weight;
  } identity[kMostIdentities];
};

SpreadCut cut_spread(int height, int width, int channels, int reach, size_t element);

template <class S>
void spread_middle(const SpreadMiddleParams<S>& params, int vector, Stream stream);
template <class S>
void spread_input(const SpreadInputParams<S>& params, int vector, Stream stream);

}  // namespace metadnas::mixed_op
