// ReLU, 1x1 convolution and batch norm on the CPU: checks, allocation, dispatch to the kernels of
// this processor.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/cohort.h"
#include "common/pool.h"
#include "relu_conv_bn/cpu/kernels.h"

namespace metadnas::relu_conv_bn {
namespace {

constexpr const char* kOp = "relu_conv_bn";

template <class T>
const Kernels<T>& kernels_for(const Shape& shape) {
  return kernels<T>(isa_for(shape.grid_channels(), sizeof(T)));
}

Shape checked_shape(const Tensor& x, int64_t channels, int64_t stride) {
  STD_TORCH_CHECK(x.dim() == 5, kOp, ": x has shape ", shape_text(x), ", expected (G, N, H, W, C)");
  check_floating(kOp, "x", x);
  for (int64_t d = 0; d < 5; ++d) {
    STD_TORCH_CHECK(x.size(d) >= 1, kOp, ": x has shape ", shape_text(x),
                    ", expected every size to be at least 1");
  }
  STD_TORCH_CHECK(stride == 1 || stride == 2, kOp, ": stride is ", stride, ", expected 1 or 2");
  STD_TORCH_CHECK(channels >= 1, kOp, ": channels is ", channels, ", expected at least 1");
  STD_TORCH_CHECK(channels % stride == 0, kOp,
                  ": a stride-2 block (factorized reduce) needs an even number of channels, got ",
                  channels);
  return {x.size(0),
          x.size(1),
          static_cast<int>(x.size(2)),
          static_cast<int>(x.size(3)),
          static_cast<int>(x.size(4)),
          static_cast<int>(channels),
          static_cast<int>(stride)};
}

// Checked inputs that forward and backward share.
struct Inputs {
  Shape shape;
  bool relu, affine;
  CountedImages counted;
  Tensor x, params;

  Inputs(const Tensor& x_in, const Tensor& params_in, const std::optional<Tensor>& counts,
         int64_t channels, int64_t stride, bool relu, bool affine)
      : shape(checked_shape(x_in, channels, stride)),
        relu(relu),
        affine(affine),
        counted(kOp, counts, x_in),
        x(torch::stable::contiguous(x_in)),
        params(params_in) {
    check_shape(kOp, "params", params, params_shape());
    check_like(kOp, "params", params, x);
    if (params.stride(1) != 1) params = torch::stable::contiguous(params);
  }

  std::vector<int64_t> params_shape() const {
    return {shape.clients, shape.weights() + (affine ? 2 * shape.out_channels : 0)};
  }
  std::vector<int64_t> stats_shape() const { return {shape.clients, 1, 2, shape.out_channels}; }
  std::vector<int64_t> out_shape() const {
    return {shape.clients, shape.images, shape.out_height(), shape.out_width(), shape.out_channels};
  }

  template <class T>
  Args<T> args(const Tensor& stats, bool training, double eps) const {
    return {shape,
            relu,
            affine,
            training,
            eps,
            counted.data(),
            x.const_data_ptr<T>(),
            params.const_data_ptr<T>(),
            params.stride(0),
            static_cast<T*>(stats.mutable_data_ptr())};
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor params, std::optional<Tensor> running,
                                           std::optional<Tensor> counts, int64_t channels,
                                           int64_t stride, bool relu, bool affine, double eps) {
  const Inputs in(x, params, counts, channels, stride, relu, affine);
  const bool training = !running.has_value();
  Tensor stats = pooled_like(x, in.stats_shape());
  if (!training) {
    check_shape(kOp, "running", *running, in.stats_shape());
    check_like(kOp, "running", *running, x);
    torch::stable::copy_(stats, *running);
  } else {
    const int64_t positions = in.counted.fewest() * in.shape.out_pixels();
    STD_TORCH_CHECK(positions > 1, kOp,
                    ": batch statistics need more than 1 value per channel, got ", positions,
                    "; x has shape ", shape_text(x));
  }
  Tensor out = pooled_like(x, in.out_shape());
  in.counted.zero_rest(out);
  Tensor normal = pooled_like(x, affine ? in.out_shape() : std::vector<int64_t>{0});
  if (affine) in.counted.zero_rest(normal);
  with_element_type(x, [&]<class T>() {
    T* to = static_cast<T*>(out.mutable_data_ptr());
    kernels_for<T>(in.shape).forward({in.args<T>(stats, training, eps),
                                      affine ? static_cast<T*>(normal.mutable_data_ptr()) : to,
                                      to});
  });
  return {out, stats, normal};
}

std::tuple<Tensor, Tensor> backward(Tensor grad_out, Tensor x, Tensor params, Tensor stats,
                                    Tensor normal, std::optional<Tensor> counts, int64_t channels,
                                    int64_t stride, bool relu, bool affine, double eps,
                                    bool training, bool need_x, bool need_params) {
  const Inputs in(x, params, counts, channels, stride, relu, affine);
  check_shape(kOp, "grad_out", grad_out, in.out_shape());
  check_shape(kOp, "stats", stats, in.stats_shape());
  check_shape(kOp, "normal", normal, in.out_shape());
  check_like(kOp, "grad_out", grad_out, x);
  check_like(kOp, "stats", stats, x);
  check_like(kOp, "normal", normal, x);
  const Tensor own_grad = torch::stable::contiguous(grad_out);
  const Tensor own_stats = torch::stable::contiguous(stats);
  const Tensor own_normal = torch::stable::contiguous(normal);
  const std::vector<int64_t> none{0};
  Tensor grad_x = pooled_like(
      x,
      need_x ? std::vector<int64_t>{x.size(0), x.size(1), x.size(2), x.size(3), x.size(4)} : none);
  Tensor grad_params = pooled_like(x, need_params ? in.params_shape() : none);
  if (need_x) in.counted.zero_rest(grad_x);
  with_element_type(x, [&]<class T>() {
    kernels_for<T>(in.shape).backward(
        {in.args<T>(own_stats, training, eps), own_normal.const_data_ptr<T>(),
         own_grad.const_data_ptr<T>(),
         need_x ? static_cast<T*>(grad_x.mutable_data_ptr()) : nullptr,
         need_params ? static_cast<T*>(grad_params.mutable_data_ptr()) : nullptr});
  });
  return {grad_x, grad_params};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("relu_conv_bn_forward", TORCH_BOX(&forward));
  m.impl("relu_conv_bn_backward", TORCH_BOX(&backward));
}

}  // namespace metadnas::relu_conv_bn
