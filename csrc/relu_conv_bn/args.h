// What ReLU, 1x1 convolution and batch norm get: raw pointers and sizes, contiguous unless a stride
// says so. Shared by every device; no torch headers.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace metadnas::relu_conv_bn {

// x (G, N, H, W, Cin) -> (G, N, H', W', Cout). Stride 2 is a factorized reduce: the first half of
// the outputs reads the grid of pixels (2h, 2w), the second half the grid (2h + 1, 2w + 1), zeros
// outside of the image.
struct Shape {
  int64_t clients;
  int64_t images;
  int height;
  int width;
  int in_channels;
  int out_channels;
  int stride;

  METADNAS_HOST_DEVICE int out_height() const { return (height + stride - 1) / stride; }
  METADNAS_HOST_DEVICE int out_width() const { return (width + stride - 1) / stride; }
  METADNAS_HOST_DEVICE int64_t in_image() const { return int64_t{height} * width * in_channels; }
  METADNAS_HOST_DEVICE int64_t out_pixels() const {
    return int64_t{out_height()} * out_width();
  }  // of one image
  METADNAS_HOST_DEVICE int grids() const { return stride; }
  METADNAS_HOST_DEVICE int grid_channels() const { return out_channels / stride; }
  METADNAS_HOST_DEVICE int64_t weights() const { return int64_t{out_channels} * in_channels; }
};

// Activations, and gradients with respect to them, are stored as S.
template <class T, class S = T>
struct Args {
  Shape shape;
  bool relu;  // before the convolution
  bool affine;
  bool training;  // batch statistics, and gradients through them
  double eps;
  const int64_t* counts;  // (G): images that count, per client; null: all N
  const S* x;             // (G, N, H, W, Cin)
  const T* params;        // (G, P): weights (Cout, Cin); affine: gamma, beta
  int64_t params_stride;  // between clients
  T* stats;               // (G, 1, 2, Cout) mean and biased variance; input in eval mode

  METADNAS_HOST_DEVICE int64_t count(int64_t client) const {
    return counts == nullptr ? shape.images : counts[client];
  }
};

template <class T, class S = T>
struct ForwardArgs : Args<T, S> {
  S* normal;  // (G, N, H', W', Cout) before gamma and beta
  S* out;     // (G, N, H', W', Cout); not affine: the same memory as `normal`
};

template <class T, class S = T>
struct BackwardArgs : Args<T, S> {
  const S* normal;    // of the forward pass
  const S* grad_out;  // (G, N, H', W', Cout)
  S* grad_x;          // (G, N, H, W, Cin); null: not wanted
  T* grad_params;     // (G, P), contiguous; null: not wanted
};

// The kernels of one instruction set for one element type.
template <class T>
struct Kernels {
  void (*forward)(const ForwardArgs<T>&);
  void (*backward)(const BackwardArgs<T>&);
};

}  // namespace metadnas::relu_conv_bn
