// The gradient of units at their own resolution: through batch norm and the pointwise product, and
// the gradients of both weights.
#pragma once

#include "mixed_op/cuda/tiles.h"

namespace metadnas::mixed_op {

template <class S>
struct GradientUnit {
  int kernel;  // 0: factorized reduce
  int dilation;
  int norm;
  Source<S> source;
  const S* z;            // (G, N, H', W', C)
  Images<const S> grad;  // of batch norm's result
  int64_t depthwise;
  int64_t pointwise;
  S* grad_d;             // (G, N, H', W', C) behind the depthwise convolution; null: not wanted.
                         // Factorized reduce: of grid 0, then of grid 1.
  int64_t weight_grads;  // of this unit in a span's row: the pointwise matrix, then the taps
};

inline constexpr int kOuter = 4;         // a thread sums kOuter x kOuter elements of the matrix'
inline constexpr int kMostTaps = 5;      // gradient, and a row of taps of one channel
inline constexpr int kTapThreads = 160;  // at most: 32 channels x 5 rows

// How the work is cut. Channels of weight gradients are in blocks: gradients of `range` x `range`
// of the matrix, of the taps of `range` channels.
struct GradientCut {
  static constexpr int kMostRange = 64;

  Tiles tiles;     // of the result
  Window window;   // of the source
  Divisor chunk;   // channels in a window
  int columns;     // of grad_d that a thread holds for one pixel
  Divisor groups;  // of columns
  int staged_rows;
  int range;
  int ranges;             // blocks of channels
  Divisor outer_step;     // threads along either side of a range of the matrix
  Divisor vectors;        // of all channels
  Divisor range_vectors;  // of a range
  int span;               // tiles of a block
  int64_t spans;          // of a client
  struct {
    int taps;
    int matrix;
    int dz;      // [channel][pixel], as the next two
    int grad_d;  // of a range
    int values;  // of a range
    int tap_sums;
    int total;
  } shared;

  __host__ __device__ int pitch() const { return tiles.pixels() + kQuad; }
};

template <class S>
struct GradientParams {
  static constexpr int kMostUnits = 24;

  Frame<S> frame;
  GradientCut cut;
  int source_height;
  int source_width;
  Accumulate<S>* weight_grads;  // (G, spans, row); null: not wanted
  int64_t row;
  int units;
  GradientUnit<S> unit[kMostUnits];
};

GradientCut cut_gradient(const Geometry& geometry, int stride, int reach, int vector,
                         size_t element);

template <class S>
void unit_gradient(const GradientParams<S>& params, int vector, Stream stream);

}  // namespace metadnas::mixed_op
