// Mixed operations on CUDA: memory and passes.
#pragma once

#include "common/checks.h"
#include "common/cohort.h"
#include "common/cuda/call.h"
#include "mixed_op/cuda/passes.h"

namespace metadnas::mixed_op {

struct Cuda {
  static constexpr bool kHalf = true;

  static Tensor empty(const Tensor& x, const std::vector<int64_t>& sizes,
                      torch::headeronly::ScalarType type) {
    return cuda::Call(x).empty(sizes, type);
  }
  // The kernels write them.
  static void zero_rest(const CountedImages&, Tensor&, int64_t = 1) {}

  template <class F>
  static void with_types(const Tensor& x, F&& f) {
    if (x.scalar_type() == torch::headeronly::ScalarType::BFloat16) {
      f.template operator()<float, __nv_bfloat16>();
    } else if (x.scalar_type() == torch::headeronly::ScalarType::Half) {
      f.template operator()<float, __half>();
    } else {
      with_element_type(x, [&]<class T>() { f.template operator()<T, T>(); });
    }
  }

  template <class T, class S>
  static void run(const Tensor& x, const MixedOpForward<T, S>& args) {
    forward_pass(x, args);
  }
  template <class T, class S>
  static void run(const Tensor& x, const MixedOpBackward<T, S>& args) {
    backward_pass(x, args);
  }
};

}  // namespace metadnas::mixed_op
