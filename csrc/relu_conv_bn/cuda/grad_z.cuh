// The gradient of the product's result, made from what is in memory whenever it is needed.
#pragma once

#include "relu_conv_bn/cuda/tile.cuh"

namespace metadnas::relu_conv_bn {

// grad_z = scale * grad + slope * normal + shift, of one client.
template <class T, class S>
struct GradZ {
  const S* grad_out;
  const S* normal;
  const T* coefficients;
  int channels;
  bool training;

  __device__ __forceinline__ GradZ(const BackwardArgs<T, S>& args, const T* all, int64_t client)
      : grad_out(args.grad_out + client * all_pixels(args) * args.shape.out_channels),
        normal(args.normal + client * all_pixels(args) * args.shape.out_channels),
        coefficients(all + client * 3 * args.shape.out_channels),
        channels(args.shape.out_channels),
        training(args.training) {}

  __device__ __forceinline__ T at(int64_t pixel, int channel) const {
    const int64_t i = pixel * channels + channel;
    const T grad = coefficients[channel] * cuda::loaded(grad_out[i]);
    // Constant statistics: a NaN in `normal` is none of this gradient's business.
    if (!training) return grad;
    return grad + (coefficients[channels + channel] * cuda::loaded(normal[i]) +
                   coefficients[2 * channels + channel]);
  }
};

}  // namespace metadnas::relu_conv_bn
