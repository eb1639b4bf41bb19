// What every kernel of mixed operations works with, as both sides see it.
#pragma once

#include "common/cuda/divisor.h"
#include "common/cuda/runtime.h"
#include "mixed_op/args.h"

namespace metadnas::mixed_op {

using cuda::ceil_div;
using cuda::Divisor;
using cuda::grid_size;
using cuda::kWarp;
using cuda::make_divisor;
using cuda::Stream;

inline constexpr int kThreads = 256;     // of every block here
inline constexpr int kStrip = 8;         // pixels of a row that a thread convolves at once
inline constexpr int kQuad = 4;          // pixels of a row that a thread multiplies at once
inline constexpr int kMostPixels = 128;  // of a tile

// What is added up in: float for activations of 16 bits.
template <class S>
struct AccumulateOf {
  using type = float;
};
template <>
struct AccumulateOf<double> {
  using type = double;
};
template <class S>
using Accumulate = typename AccumulateOf<S>::type;

// Blocks of a multiprocessor at once: the registers of a kernel are bounded by it, and only by it.
template <class S>
constexpr int kBlocks = std::is_same_v<S, double> ? 1 : 2;

// Rows of one batch norm's vectors: out = (z - mean) * inverse * gamma + beta.
enum NormRow { kMean, kInverse, kGamma, kBeta, kNormRows };
// And of its gradient's: dz = scale * gradient + slope * (z - mean) + shift.
enum GradientRow { kScale, kSlope, kShift, kGradientRows };

template <class S>
struct Frame {
  using A = Accumulate<S>;

  int64_t clients;
  int64_t images;         // of a client
  const int64_t* counts;  // (G) that count; null: all
  int channels;
  int norms;
  const A* params;  // (G, P)
  int64_t params_stride;
  const A* weights;  // (G, ...) mixing weights
  int64_t weights_stride;
  A* vectors;    // (G, norms, kNormRows, C)
  A* gradients;  // (G, norms, kGradientRows, C); backward only

  __device__ int64_t count(int64_t client) const {
    if (counts == nullptr) return images;
    const int64_t given = counts[client];
    return given < 0 ? 0 : given > images ? images : given;
  }
  // image: among those of all clients.
  __device__ bool counted(int64_t client, int64_t image) const {
    return counts == nullptr || image - client * images < count(client);
  }
  __device__ A* norm(int64_t client, int index) const {
    return vectors + (client * norms + index) * kNormRows * channels;
  }
  __device__ A* gradient(int64_t client, int index) const {
    return gradients + (client * norms + index) * kGradientRows * channels;
  }
  __device__ const A* param(int64_t client, int64_t at) const {
    return params + client * params_stride + at;
  }
  __device__ A weight(int64_t client, int64_t at) const {
    return weights[client * weights_stride + at];
  }
};

}  // namespace metadnas::mixed_op
