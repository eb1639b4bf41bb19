// What the operators hand to the kernels: raw pointers and sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "common/host_device.h"
#include "mixed_op/plan.h"

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

  METADNAS_HOST_DEVICE T* at(int64_t index) const { return data + index * image; }
  METADNAS_HOST_DEVICE bool present() const { return data != nullptr; }
};

// All mixed operations that read one source x. Activations, and gradients with respect to them, are
// stored as S.
template <class T, class S = T>
struct MixedOpArgs {
  Plan plan;
  Geometry geometry;
  bool training;  // batch statistics, and gradients through them
  double eps;
  const int64_t* counts;  // (G): images that count, per client; null: all N
  Images<const S> x;
  const T* weights;  // (G, ...) mixing weights
  int64_t weights_stride;
  const T* params;  // (G, P) packed parameters
  int64_t params_stride;
  T* stats;  // (G, S, 2, C) mean and biased variance; input in eval mode
  int64_t stats_stride;
  S* z;  // (kept, G, N, H', W', C) pointwise results kept for the backward pass

  int64_t count(int64_t client) const {
    return counts == nullptr ? geometry.images : counts[client];
  }
};

template <class S>
struct EdgeOutput {
  Images<S> images;
  bool add;  // to what is there, instead of overwriting it
};

template <class T, class S = T>
struct MixedOpForward : MixedOpArgs<T, S> {
  std::vector<EdgeOutput<S>> out;  // per edge
};

template <class T, class S = T>
struct MixedOpBackward : MixedOpArgs<T, S> {
  std::vector<Images<const S>> grad_out;  // per edge
  Images<const S> base;                   // added to grad_x, unless absent
  Images<S> grad_x;                       // absent: not wanted
  T* grad_weights;                        // (G, ...) as weights
  T* grad_params;                         // (G, P) as params; null: not wanted
  int64_t grad_params_stride;
};

// The CPU's kernels of one instruction set for one element type.
template <class T>
struct MixedOpKernels {
  void (*forward)(const MixedOpForward<T>&);
  void (*backward)(const MixedOpBackward<T>&);
};

}  // namespace metadnas
