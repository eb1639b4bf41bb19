// Tensors whose memory is kept for the next one of about the same size.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace metadnas {

// An uninitialised tensor of x's type on the CPU, from the pool if it is large. What a forward pass
// keeps for its backward pass is tens of megabytes an operator, beyond what malloc holds on to:
// asking the system for it each time costs more than computing it (a page fault and a cleared page
// for every 4 kB).
torch::stable::Tensor pooled_like(const torch::stable::Tensor& x,
                                  const std::vector<int64_t>& sizes);

// Bytes that the pool holds and nobody uses.
int64_t pool_idle_bytes();

// Gives them back to the system, and returns how many they were.
int64_t pool_release();

}  // namespace metadnas
