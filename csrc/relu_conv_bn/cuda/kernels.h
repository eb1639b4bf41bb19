// The stages as the host sees them. No torch headers.
#pragma once

#include "common/cuda/runtime.h"
#include "relu_conv_bn/args.h"

namespace metadnas::relu_conv_bn {

inline constexpr int kTilePixels = 64;     // of a tile of products, and its moments
inline constexpr int kSumPixels = 256;     // whose gradients a block adds up
inline constexpr int kWeightPixels = 512;  // of a partial weight gradient

// Elements of scratch memory: for moments, gradients' sums, coefficients and weight gradients.
inline int64_t parts_of(const Shape& shape, int pixels) {
  return shape.clients * cuda::ceil_div(shape.images * shape.out_pixels(), pixels);
}
inline int64_t moments_size(const Shape& shape) {
  return parts_of(shape, kTilePixels) * 2 * shape.out_channels;
}
inline int64_t sums_size(const Shape& shape) {
  return parts_of(shape, kSumPixels) * 2 * shape.out_channels;
}
inline int64_t coefficients_size(const Shape& shape) {
  return shape.clients * 3 * shape.out_channels;
}
inline int64_t weights_size(const Shape& shape) {
  return parts_of(shape, kWeightPixels) * shape.weights();
}

// moments: [client][pixel tile][mean, M2][channel] of the results -> stats
template <class T, class S>
void batch_statistics(const Args<T, S>& args, double* moments, cuda::Stream stream);

// out and normal, by the statistics that are there
template <class T, class S>
void normalised_product(const ForwardArgs<T, S>& args, cuda::Stream stream);

// sums: [client][chunk][grad, grad * normal][channel] -> coefficients: [client][scale, slope,
// shift][channel] of grad_z = scale * grad + slope * normal + shift; gradients of gamma and beta
template <class T, class S>
void gradient_sums(const BackwardArgs<T, S>& args, double* sums, T* coefficients,
                   cuda::Stream stream);

template <class T, class S>
void input_gradient(const BackwardArgs<T, S>& args, const T* coefficients, cuda::Stream stream);

// partial: [client][chunk][weight]
template <class T, class S>
void weight_gradient(const BackwardArgs<T, S>& args, const T* coefficients, T* partial,
                     cuda::Stream stream);

}  // namespace metadnas::relu_conv_bn
