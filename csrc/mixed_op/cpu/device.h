// Mixed operations on the CPU: memory, and dispatch to the kernels of this processor.
#pragma once

#include "common/checks.h"
#include "common/cohort.h"
#include "common/pool.h"
#include "mixed_op/cpu/kernels.h"

namespace metadnas::mixed_op {

struct Cpu {
  static constexpr bool kHalf = false;

  static Tensor empty(const Tensor& x, const std::vector<int64_t>& sizes,
                      torch::headeronly::ScalarType) {
    return pooled_like(x, sizes);  // everything is of x's dtype
  }
  static void zero_rest(const CountedImages& counts, Tensor& t, int64_t outer = 1) {
    counts.zero_rest(t, outer);
  }

  template <class F>
  static void with_types(const Tensor& x, F&& f) {
    with_element_type(x, [&]<class T>() { f.template operator()<T, T>(); });
  }

  template <class T>
  static void run(const Tensor&, const MixedOpForward<T>& args) {
    kernels_for(args).forward(args);
  }
  template <class T>
  static void run(const Tensor&, const MixedOpBackward<T>& args) {
    kernels_for(args).backward(args);
  }

 private:
  template <class T>
  static const MixedOpKernels<T>& kernels_for(const MixedOpArgs<T>& args) {
    return mixed_op_kernels<T>(isa_for(args.geometry.channels, sizeof(T)));
  }
};

}  // namespace metadnas::mixed_op
