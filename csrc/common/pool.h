// Tensors whose memory is kept for the next one of about the same size.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace metadnas {

// An uninitialised tensor of x's type on the CPU, from the pool if it is large. What an operator
// returns or keeps for its backward pass is megabytes to hundreds of them, more than malloc holds
// on to: asking the system for it each time costs more than computing it (a page fault and a
// cleared page for every 4 kB).
torch::stable::Tensor pooled_like(const torch::stable::Tensor& x,
                                  const std::vector<int64_t>& sizes);

// Bytes that the pool holds and nobody uses.
int64_t pool_idle_bytes();

// Gives them back to the system.
void pool_release();

}  // namespace metadnas
