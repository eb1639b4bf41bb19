#pragma once

#include "mixed_op/cuda/frame.cuh"
#include "mixed_op/cuda/walk.h"

namespace metadnas::mixed_op {

// A thread's place in a WalkCut.
template <int V>
struct Walk {
  int64_t image;  // among those of all clients
  int64_t client;
  int piece;
  int lanes;
  int lane;
  int channel;  // the first of V
  bool live;

  template <class S>
  __device__ Walk(const WalkCut& cut, const Frame<S>& frame)
      : lanes(cut.lanes()),
        lane(thread() / cut.width),
        channel((static_cast<int>(blockIdx.z) * cut.width + thread() % cut.width) * V),
        live(lane < lanes && channel < frame.channels) {
    // Blocks, and so images, fit 32 bits.
    const unsigned pieces = static_cast<unsigned>(cut.pieces), own = blockIdx.x / pieces;
    image = own;
    client = own / static_cast<unsigned>(frame.images);
    piece = static_cast<int>(blockIdx.x - own * pieces);
  }
};

}  // namespace metadnas::mixed_op
