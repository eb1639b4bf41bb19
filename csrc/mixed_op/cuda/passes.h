// Forward and backward pass of the edges that leave one source, on CUDA.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "mixed_op/args.h"

namespace metadnas::mixed_op {

// x: any tensor on the device of the arguments, of their dtype.
template <class T, class S>
void forward_pass(const torch::stable::Tensor& x, const MixedOpForward<T, S>& args);
template <class T, class S>
void backward_pass(const torch::stable::Tensor& x, const MixedOpBackward<T, S>& args);

}  // namespace metadnas::mixed_op
