// The mixed operation: checks and allocation, for every device. A device has
//   kHalf                       whether activations may be of half precision
//   empty(x, sizes, type)       memory for a result
//   zero_rest(counts, t, outer) zeros in images that do not count, unless its kernels write them
//   run<T, S>(x, args)          forward or backward of edges that leave one source
//   with_types(x, f)            f.operator()<T, S>() for the dtype of x
#pragma once

#include <optional>
#include <tuple>

#include "mixed_op/args.h"
#include "mixed_op/inputs.h"

namespace metadnas::mixed_op {

inline constexpr const char* kOp = "mixed_op";

// Checked inputs that forward and backward share.
struct Inputs {
  Tensor x, weights, params;
  CountedImages counts;
  Plan plan;
  Geometry geometry;

  Inputs(const Tensor& x_in, const Tensor& weights_in, const Tensor& params_in,
         const std::optional<Tensor>& counts_in, const std::vector<int64_t>& candidates,
         int64_t stride, bool affine, int64_t keep)
      : x(checked(x_in, candidates, stride)),
        weights(weights_in),
        params(params_in),
        counts(kOp, counts_in, x),
        plan(make_plan({{candidates}}, static_cast<int>(x.size(4)), static_cast<int>(stride),
                       affine, checked_keep(kOp, keep))) {
    const auto half = [&](int64_t size) { return static_cast<int>((size + stride - 1) / stride); };
    geometry = {x.size(0),
                x.size(1),
                static_cast<int>(x.size(2)),
                static_cast<int>(x.size(3)),
                static_cast<int>(x.size(4)),
                static_cast<int>(stride),
                half(x.size(2)),
                half(x.size(3))};
    check_shape(kOp, "weights", weights,
                {geometry.clients, static_cast<int64_t>(candidates.size())});
    check_shape(kOp, "params", params, {geometry.clients, plan.parameters});
    check_wide(kOp, "weights", weights, x);
    check_wide(kOp, "params", params, x);
    x = torch::stable::contiguous(x);
    weights = torch::stable::contiguous(weights);
    params = with_dense_rows(params);
  }

  std::vector<int64_t> stats_shape() const {
    return {geometry.clients, plan.norm_slots, 2, geometry.channels};
  }
  std::vector<int64_t> z_shape() const {
    return {plan.kept,           geometry.clients,   geometry.images,
            geometry.out_height, geometry.out_width, geometry.channels};
  }
  std::vector<int64_t> out_shape() const {
    return {geometry.clients, geometry.images, geometry.out_height, geometry.out_width,
            geometry.channels};
  }

  template <class T, class S>
  MixedOpArgs<T, S> args(const Tensor& stats, const Tensor& z, bool training, double eps) const {
    return {plan,
            geometry,
            training,
            eps,
            counts.data(),
            images(static_cast<const S*>(x.const_data_ptr()), geometry.in_pixels()),
            weights.const_data_ptr<T>(),
            weights.size(1),
            params.const_data_ptr<T>(),
            params.stride(0),
            static_cast<T*>(stats.mutable_data_ptr()),
            plan.norm_slots * 2 * geometry.channels,
            static_cast<S*>(z.mutable_data_ptr())};
  }

  template <class S>
  Images<S> images(S* data, int64_t pixels) const {
    return {data, geometry.channels, pixels * geometry.channels};
  }

 private:
  static Tensor checked(const Tensor& x, const std::vector<int64_t>& candidates, int64_t stride) {
    check(stride == 1 || stride == 2, kOp, ": stride is ", stride, ", expected 1 or 2");
    check_candidates(kOp, candidates, stride, x.size(4));
    return x;
  }
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor weights, Tensor params,
                                           std::optional<Tensor> running,
                                           std::optional<Tensor> counts,
                                           std::vector<int64_t> candidates, int64_t stride,
                                           bool affine, double eps, int64_t keep) {
  check_activations(kOp, "x", x, Device::kHalf);
  const Inputs in(x, weights, params, counts, candidates, stride, affine, keep);
  const bool training = !running.has_value();
  if (!training) {
    check_shape(kOp, "running", *running, in.stats_shape());
    check_wide(kOp, "running", *running, x);
  } else if (!in.plan.norms.empty()) {
    check_variance(kOp, in.counts, in.geometry.out_pixels(), x);
  }
  Tensor stats = Device::empty(x, in.stats_shape(), wide_type(x));
  if (!training) torch::stable::copy_(stats, *running);
  Tensor z = Device::empty(x, in.z_shape(), x.scalar_type());
  Tensor out = Device::empty(x, in.out_shape(), x.scalar_type());
  Device::zero_rest(in.counts, z, in.plan.kept);
  Device::zero_rest(in.counts, out);
  Device::with_types(x, [&]<class T, class S>() {
    S* to = static_cast<S*>(out.mutable_data_ptr());
    Device::run(x, MixedOpForward<T, S>{in.args<T, S>(stats, z, training, eps),
                                        {{in.images(to, in.geometry.out_pixels()), false}}});
  });
  return {out, stats, z};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_out, Tensor x, Tensor weights,
                                            Tensor params, Tensor stats, Tensor z,
                                            std::optional<Tensor> counts,
                                            std::vector<int64_t> candidates, int64_t stride,
                                            bool affine, double eps, int64_t keep, bool training,
                                            bool need_x, bool need_params) {
  check_activations(kOp, "x", x, Device::kHalf);
  const Inputs in(x, weights, params, counts, candidates, stride, affine, keep);
  check_shape(kOp, "grad_out", grad_out, in.out_shape());
  check_shape(kOp, "stats", stats, in.stats_shape());
  check_shape(kOp, "z", z, in.z_shape());
  check_like(kOp, "grad_out", grad_out, x);
  check_wide(kOp, "stats", stats, x);
  check_like(kOp, "z", z, x);
  const Tensor grad = torch::stable::contiguous(grad_out);
  const Tensor own_stats = torch::stable::contiguous(stats);
  const Tensor own_z = torch::stable::contiguous(z);
  Tensor grad_x = Device::empty(x, sizes_if(need_x, in.x), x.scalar_type());
  Tensor grad_weights = Device::empty(x, sizes_if(true, in.weights), wide_type(x));
  Tensor grad_params = Device::empty(x, sizes_if(need_params, in.params), wide_type(x));
  if (need_x) Device::zero_rest(in.counts, grad_x);
  Device::with_types(x, [&]<class T, class S>() {
    const auto* from = static_cast<const S*>(grad.const_data_ptr());
    S* to_x = static_cast<S*>(grad_x.mutable_data_ptr());
    T* to_params = static_cast<T*>(grad_params.mutable_data_ptr());
    Device::run(
        x, MixedOpBackward<T, S>{in.args<T, S>(own_stats, own_z, training, eps),
                                 {in.images(from, in.geometry.out_pixels())},
                                 {},
                                 need_x ? in.images(to_x, in.geometry.in_pixels()) : Images<S>{},
                                 static_cast<T*>(grad_weights.mutable_data_ptr()),
                                 need_params ? to_params : nullptr,
                                 in.plan.parameters});
  });
  return {grad_x, grad_weights, grad_params};
}

}  // namespace metadnas::mixed_op
