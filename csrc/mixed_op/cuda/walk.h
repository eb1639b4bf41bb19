// How kernels without tiles deal out an image: a thread has a vector of channels and walks over
// pixels.
#pragma once

#include <algorithm>

#include "mixed_op/cuda/frame.h"

namespace metadnas::mixed_op {

// blockIdx.x counts images and their pieces, blockIdx.z blocks of channels.
struct WalkCut {
  Divisor width;  // vectors of channels of a block
  int blocks;     // of channels
  int pieces;     // of an image
  int each;       // pixels of a thread

  __host__ __device__ int lanes() const { return kThreads / width; }  // pixels at once
};

// most: pixels of a thread.
inline WalkCut cut_walk(const Geometry& geometry, int vector, int most) {
  const int vectors = geometry.channels / vector;
  WalkCut cut{};
  cut.width = make_divisor(std::min(vectors, kThreads));
  cut.blocks = ceil_div(vectors, cut.width);
  const int64_t steps = ceil_div(geometry.out_pixels(), cut.lanes());
  cut.pieces = static_cast<int>(ceil_div(steps, most));
  cut.each = static_cast<int>(ceil_div(steps, cut.pieces));
  return cut;
}

template <class S>
dim3 walk_grid(const WalkCut& cut, const Frame<S>& frame, int y) {
  return {grid_size(frame.clients * frame.images * cut.pieces), grid_size(y),
          grid_size(cut.blocks)};
}

}  // namespace metadnas::mixed_op
