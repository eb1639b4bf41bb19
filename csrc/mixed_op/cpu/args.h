// What the operator hands to the kernels: raw pointers and sizes, contiguous unless a stride says
// so.
#pragma once

#include <cstdint>

#include "mixed_op/plan.h"

namespace metadnas {

// Activations are (G, N, H, W, C), channels last; G clients with N images each.
struct Geometry {
  int64_t clients;
  int64_t images;
  int height;
  int width;
  int channels;
  int stride;
  int out_height;
  int out_width;

  int64_t in_image() const { return int64_t{height} * width * channels; }
  int64_t out_image() const { return int64_t{out_height} * out_width * channels; }
  int64_t out_pixels() const { return int64_t{out_height} * out_width; }
};

template <class T>
struct MixedOpArgs {
  Plan plan;
  Geometry geometry;
  bool training;  // batch statistics, and gradients through them
  double eps;
  const int64_t* counts;  // (G): images that count, per client; null: all N
  const T* x;             // (G, N, H, W, C)
  const T* weights;       // (G, O) mixing weights
  const T* params;        // (G, P) packed parameters
  int64_t params_stride;  // between clients
  T* stats;               // (G, S, 2, C) mean and biased variance; input in eval mode
  T* z;                   // (U, G, N, H', W', C) pointwise results; saved for backward

  int64_t count(int64_t client) const {
    return counts == nullptr ? geometry.images : counts[client];
  }
  T* z_image(int unit, int64_t client, int64_t image) const {
    const Geometry& g = geometry;
    return z + ((unit * g.clients + client) * g.images + image) * g.out_image();
  }
};

template <class T>
struct MixedOpForward : MixedOpArgs<T> {
  T* out;  // (G, N, H', W', C)
};

template <class T>
struct MixedOpBackward : MixedOpArgs<T> {
  const T* grad_out;  // (G, N, H', W', C)
  T* grad_x;          // (G, N, H, W, C)
  T* grad_weights;    // (G, O)
  T* grad_params;     // (G, P), contiguous
};

// The kernels of one instruction set for one element type.
template <class T>
struct MixedOpKernels {
  const char* name;
  int lanes;
  void (*forward)(const MixedOpForward<T>&);
  void (*backward)(const MixedOpBackward<T>&);
};

}  // namespace metadnas
