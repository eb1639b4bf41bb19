// ReLU, 1x1 convolution and batch norm on the CPU: dispatch to the kernels of this processor.
#include <torch/csrc/stable/library.h>

#include "common/pool.h"
#include "relu_conv_bn/cpu/kernels.h"
#include "relu_conv_bn/operator.h"

namespace metadnas::relu_conv_bn {
namespace {

template <class T>
const Kernels<T>& kernels_for(const Shape& shape) {
  return kernels<T>(isa_for(shape.grid_channels(), sizeof(T)));
}

struct Cpu {
  static constexpr bool kHalf = false;

  static Tensor empty(const Tensor& x, const std::vector<int64_t>& sizes, ScalarType) {
    return pooled_like(x, sizes);  // everything is of x's dtype
  }
  static void zero_rest(const CountedImages& counted, Tensor& t) { counted.zero_rest(t); }

  template <class F>
  static void with_types(const Tensor& x, F&& f) {
    with_element_type(x, [&]<class T>() { f.template operator()<T, T>(); });
  }

  template <class T>
  static void run(const Tensor&, const ForwardArgs<T>& args) {
    kernels_for<T>(args.shape).forward(args);
  }
  template <class T>
  static void run(const Tensor&, const BackwardArgs<T>& args) {
    kernels_for<T>(args.shape).backward(args);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("relu_conv_bn_forward", TORCH_BOX(&forward<Cpu>));
  m.impl("relu_conv_bn_backward", TORCH_BOX(&backward<Cpu>));
}

}  // namespace metadnas::relu_conv_bn
