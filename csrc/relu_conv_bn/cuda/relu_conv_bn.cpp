// ReLU, 1x1 convolution and batch norm on CUDA: scratch memory and stages.
#include <torch/csrc/stable/library.h>

#include "common/cuda/call.h"
#include "relu_conv_bn/cuda/kernels.h"
#include "relu_conv_bn/operator.h"

namespace metadnas::relu_conv_bn {
namespace {

struct Cuda {
  static constexpr bool kHalf = true;

  static Tensor empty(const Tensor& x, const std::vector<int64_t>& sizes, ScalarType type) {
    return cuda::Call(x).empty(sizes, type);
  }
  static void zero_rest(const CountedImages&, Tensor&) {}  // the kernels write them

  template <class F>
  static void with_types(const Tensor& x, F&& f) {
    if (x.scalar_type() == ScalarType::BFloat16) {
      f.template operator()<float, __nv_bfloat16>();
    } else if (x.scalar_type() == ScalarType::Half) {
      f.template operator()<float, __half>();
    } else {
      with_element_type(x, [&]<class T>() { f.template operator()<T, T>(); });
    }
  }

  template <class T, class S>
  static void run(const Tensor& x, const ForwardArgs<T, S>& args) {
    cuda::Call call(x);
    if (args.training) {
      auto* moments = call.scratch<double>(moments_size(args.shape));
      batch_statistics<T, S>(args, moments, call.stream());
    }
    normalised_product(args, call.stream());
  }

  template <class T, class S>
  static void run(const Tensor& x, const BackwardArgs<T, S>& args) {
    cuda::Call call(x);
    auto* sums = call.scratch<double>(sums_size(args.shape));
    T* coefficients = call.scratch<T>(coefficients_size(args.shape));
    gradient_sums(args, sums, coefficients, call.stream());
    if (args.grad_x != nullptr) input_gradient(args, coefficients, call.stream());
    if (args.grad_params == nullptr) return;
    T* partial = call.scratch<T>(weights_size(args.shape));
    weight_gradient(args, coefficients, partial, call.stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, METADNAS_CUDA_KEY, m) {
  m.impl("relu_conv_bn_forward", TORCH_BOX(&forward<Cuda>));
  m.impl("relu_conv_bn_backward", TORCH_BOX(&backward<Cuda>));
}

}  // namespace metadnas::relu_conv_bn
