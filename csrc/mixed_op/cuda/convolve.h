// Stages A and B: every unit that reads x, or every second half; results z and their moments.
#pragma once

#include "mixed_op/cuda/tiles.h"

namespace metadnas::mixed_op {

template <class S>
struct ConvolveUnit {
  int kernel;  // 0: factorized reduce
  int dilation;
  int partial;  // of its moments
  Source<S> source;
  S* z;  // (G, N, H', W', C)
  int64_t depthwise;
  int64_t pointwise;
};

// How the work is cut, and where a block keeps what: elements from the start of its shared memory,
// where the window is.
struct ConvolveCut {
  Tiles tiles;     // of the result
  Window window;   // of the source
  Divisor chunk;   // channels in a window, a power of two
  int columns;     // results a thread holds for one pixel
  Divisor groups;  // of columns
  int staged_rows;
  struct {
    int taps;
    int matrix;
    int values;  // [channel][pixel]
    int total;
  } shared;

  __host__ __device__ int pitch() const { return tiles.pixels() + kQuad; }
};

template <class S>
struct ConvolveParams {
  static constexpr int kMostUnits = 32;

  Frame<S> frame;
  ConvolveCut cut;
  int source_height;
  int source_width;
  int units;
  int units_per_block;  // blockIdx.y counts groups of these
  int partials;
  Accumulate<S>* moments;  // (G, N, tiles, partials, 2, C); null: not wanted
  ConvolveUnit<S> unit[kMostUnits];
};

// vector: channels in a row that may be read and written together, 4 or 1. reach: pixels that the
// units' kernels extend to each side. Throws if the channels are too many.
ConvolveCut cut_convolve(const Geometry& geometry, int stride, int reach, int vector,
                         size_t element);

template <class S>
void convolve(const ConvolveParams<S>& params, int vector, Stream stream);

}  // namespace metadnas::mixed_op
