// What the operators hand to the kernels: raw pointers and sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "mixed_op/plan.h"

// Functions that CUDA's kernels call as well.
#if defined(__CUDACC__)
#define METADNAS_BOTH __host__ __device__
#else
#define METADNAS_BOTH
#endif

namespace metadnas {

// G clients with N images each, activations (G, N, H, W, C), channels last.
struct Geometry {
  int64_t clients;
  int64_t images;
  int height;
  int width;
  int channels;
  int stride;
  int out_height;
  int out_width;

  int64_t in_pixels() const { return int64_t{height} * width; }
  int64_t out_pixels() const { return int64_t{out_height} * out_width; }
};

// Images whose pixels are `pitch` elements apart: whole ones, or some channels of wider ones.
template <class T>
struct Images {
  T* data = nullptr;
  int64_t pitch = 0;
  int64_t image = 0;  // elements between images

  METADNAS_BOTH T* at(int64_t index) const { return data + index * image; }
  METADNAS_BOTH bool present() const { return data != nullptr; }
};

// All mixed operations that read one source x. T: activations; P: weights, parameters, statistics.
template <class T, class P = T>
struct MixedOpArgs {
  Plan plan;
  Geometry geometry;
  bool training;  // batch statistics, and gradients through them
  double eps;
  const int64_t* counts;  // (G): images that count, per client, where the kernels run; null: all N
  Images<const T> x;
  const P* weights;  // (G, ...) mixing weights
  int64_t weights_stride;
  const P* params;  // (G, P) packed parameters
  int64_t params_stride;
  P* stats;  // (G, S, 2, C) mean and biased variance; input in eval mode
  int64_t stats_stride;
  T* z;  // (kept, G, N, H', W', C) pointwise results kept for the backward pass

  int64_t count(int64_t client) const {
    return counts == nullptr ? geometry.images : counts[client];
  }
};

template <class T>
struct EdgeOutput {
  Images<T> images;
  bool add;  // to what is there, instead of overwriting it
};

template <class T, class P = T>
struct MixedOpForward : MixedOpArgs<T, P> {
  std::vector<EdgeOutput<T>> out;  // per edge
};

template <class T, class P = T>
struct MixedOpBackward : MixedOpArgs<T, P> {
  std::vector<Images<const T>> grad_out;  // per edge
  Images<const T> base;                   // added to grad_x, unless absent
  Images<T> grad_x;                       // absent: not wanted
  P* grad_weights;                        // (G, ...) as weights
  P* grad_params;                         // (G, P) as params; null: not wanted
  int64_t grad_params_stride;
};

// The kernels of one instruction set for one element type.
template <class T>
struct MixedOpKernels {
  void (*forward)(const MixedOpForward<T>&);
  void (*backward)(const MixedOpBackward<T>&);
};

}  // namespace metadnas
