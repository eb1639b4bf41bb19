// What the host side of an operator needs on the device of its tensors: that device made current,
// torch's stream there, and memory from torch's allocator.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "common/cuda/runtime.h"

// The dispatch key of what is registered here. The shim takes the CPU's place.
#if defined(METADNAS_CUDA_SHIM)
#define METADNAS_CUDA_KEY CPU
#else
#define METADNAS_CUDA_KEY CUDA
#endif

namespace metadnas::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// For the time of one call of an operator.
class Call {
 public:
  explicit Call(const Tensor& x) : guard_(x.get_device_index()), x_(x) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<Stream>(stream);
  }

  Stream stream() const { return stream_; }

  // Of x's dtype if none is given; contents undefined.
  Tensor empty(const std::vector<int64_t>& sizes, std::optional<ScalarType> type = {}) const {
    return torch::stable::new_empty(x_, {sizes.data(), sizes.size()}, type);
  }

  // `count` elements until the call ends: what runs later on the stream may get the same memory.
  template <class T>
  T* scratch(int64_t count) {
    held_.push_back(empty({count * static_cast<int64_t>(sizeof(T))}, ScalarType::Byte));
    return static_cast<T*>(held_.back().mutable_data_ptr());
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  Tensor x_;
  Stream stream_;
  std::vector<Tensor> held_;
};

}  // namespace metadnas::cuda
