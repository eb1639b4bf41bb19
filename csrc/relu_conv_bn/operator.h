// ReLU, 1x1 convolution and batch norm: the operator's checks and allocation, for every device. A
// device has
//   kHalf                  whether activations may be of half precision
//   empty(x, sizes, type)  memory for a result
//   zero_rest(counted, t)  zeros in images that do not count, unless its kernels write them
//   run<T, S>(x, args)     forward or backward, activations stored as S
//   with_types(x, f)       f.operator()<T, S>() for the dtype of x
#pragma once

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "common/cohort.h"
#include "relu_conv_bn/args.h"

namespace metadnas::relu_conv_bn {

using torch::headeronly::ScalarType;

inline constexpr const char* kOp = "relu_conv_bn";

inline void check_activations(const Tensor& x, bool half) {
  check(x.dim() == 5, kOp, ": x has shape ", shape_text(x), ", expected (G, N, H, W, C)");
  if (!half || !is_half(x)) check_floating(kOp, "x", x);
  for (int64_t d = 0; d < 5; ++d) {
    check(x.size(d) >= 1, kOp, ": x has shape ", shape_text(x),
          ", expected every size to be at least 1");
  }
}

inline Shape checked_shape(const Tensor& x, int64_t channels, int64_t stride) {
  check(stride == 1 || stride == 2, kOp, ": stride is ", stride, ", expected 1 or 2");
  check(channels >= 1, kOp, ": channels is ", channels, ", expected at least 1");
  check(channels % stride == 0, kOp,
        ": a stride-2 block (factorized reduce) needs an even number of channels, got ", channels);
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
    check_wide("params", params);
    if (params.stride(1) != 1) params = torch::stable::contiguous(params);
  }

  // Beside activations in half precision: Float.
  void check_wide(const char* name, const Tensor& t) const {
    check_type(kOp, name, t, wide_type(x), is_half(x) ? " beside x" : " as x");
    check_device(kOp, name, t, x);
  }

  std::vector<int64_t> x_shape() const {
    return {shape.clients, shape.images, shape.height, shape.width, shape.in_channels};
  }
  std::vector<int64_t> params_shape() const {
    return {shape.clients, shape.weights() + (affine ? 2 * shape.out_channels : 0)};
  }
  std::vector<int64_t> stats_shape() const { return {shape.clients, 1, 2, shape.out_channels}; }
  std::vector<int64_t> out_shape() const {
    return {shape.clients, shape.images, shape.out_height(), shape.out_width(), shape.out_channels};
  }

  template <class T, class S>
  Args<T, S> args(const Tensor& stats, bool training, double eps) const {
    return {shape,
            relu,
            affine,
            training,
            eps,
            counted.data(),
            static_cast<const S*>(x.const_data_ptr()),
            params.const_data_ptr<T>(),
            params.stride(0),
            static_cast<T*>(stats.mutable_data_ptr())};
  }
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor params, std::optional<Tensor> running,
                                           std::optional<Tensor> counts, int64_t channels,
                                           int64_t stride, bool relu, bool affine, double eps) {
  check_activations(x, Device::kHalf);
  const Inputs in(x, params, counts, channels, stride, relu, affine);
  const bool training = !running.has_value();
  if (!training) {
    check_shape(kOp, "running", *running, in.stats_shape());
    in.check_wide("running", *running);
  } else {
    const int64_t positions = in.counted.fewest() * in.shape.out_pixels();
    check(positions > 1, kOp, ": batch statistics need more than 1 value per channel, got ",
          positions, "; x has shape ", shape_text(x));
  }
  Tensor stats = Device::empty(x, in.stats_shape(), wide_type(x));
  if (!training) torch::stable::copy_(stats, *running);
  Tensor out = Device::empty(x, in.out_shape(), x.scalar_type());
  Tensor normal =
      Device::empty(x, affine ? in.out_shape() : std::vector<int64_t>{0}, x.scalar_type());
  Device::zero_rest(in.counted, out);
  if (affine) Device::zero_rest(in.counted, normal);
  Device::with_types(x, [&]<class T, class S>() {
    Device::run(x, ForwardArgs<T, S>{
                       in.args<T, S>(stats, training, eps),
                       static_cast<S*>((affine ? normal : out).mutable_data_ptr()),
                       static_cast<S*>(out.mutable_data_ptr()),
                   });
  });
  return {out, stats, normal};
}

template <class Device>
std::tuple<Tensor, Tensor> backward(Tensor grad_out, Tensor x, Tensor params, Tensor stats,
                                    Tensor normal, std::optional<Tensor> counts, int64_t channels,
                                    int64_t stride, bool relu, bool affine, double eps,
                                    bool training, bool need_x, bool need_params) {
  check_activations(x, Device::kHalf);
  const Inputs in(x, params, counts, channels, stride, relu, affine);
  check_shape(kOp, "grad_out", grad_out, in.out_shape());
  check_shape(kOp, "stats", stats, in.stats_shape());
  check_shape(kOp, "normal", normal, in.out_shape());
  check_like(kOp, "grad_out", grad_out, x);
  in.check_wide("stats", stats);
  check_like(kOp, "normal", normal, x);
  const Tensor own_grad = torch::stable::contiguous(grad_out);
  const Tensor own_stats = torch::stable::contiguous(stats);
  const Tensor own_normal = torch::stable::contiguous(normal);
  const std::vector<int64_t> none{0};
  Tensor grad_x = Device::empty(x, need_x ? in.x_shape() : none, x.scalar_type());
  Tensor grad_params = Device::empty(x, need_params ? in.params_shape() : none, wide_type(x));
  if (need_x) Device::zero_rest(in.counted, grad_x);
  Device::with_types(x, [&]<class T, class S>() {
    Device::run(x, BackwardArgs<T, S>{
                       in.args<T, S>(own_stats, training, eps),
                       static_cast<const S*>(own_normal.const_data_ptr()),
                       static_cast<const S*>(own_grad.const_data_ptr()),
                       need_x ? static_cast<S*>(grad_x.mutable_data_ptr()) : nullptr,
                       need_params ? static_cast<T*>(grad_params.mutable_data_ptr()) : nullptr,
                   });
  });
  return {grad_x, grad_params};
}

}  // namespace metadnas::relu_conv_bn
