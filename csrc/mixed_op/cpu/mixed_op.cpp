// The mixed operation on the CPU: checks, allocation, dispatch to the kernels of this processor.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "mixed_op/cpu/inputs.h"
#include "mixed_op/cpu/kernels.h"

namespace metadnas {
namespace {

constexpr const char* kOp = "mixed_op";

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
    check_like(kOp, "weights", weights, x);
    check_like(kOp, "params", params, x);
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

  template <class T>
  MixedOpArgs<T> args(const Tensor& stats, const Tensor& z, bool training, double eps) const {
    return {plan,
            geometry,
            training,
            eps,
            counts.data(),
            images(x.const_data_ptr<T>(), geometry.in_pixels()),
            weights.const_data_ptr<T>(),
            weights.size(1),
            params.const_data_ptr<T>(),
            params.stride(0),
            static_cast<T*>(stats.mutable_data_ptr()),
            plan.norm_slots * 2 * geometry.channels,
            static_cast<T*>(z.mutable_data_ptr())};
  }

  template <class T>
  Images<T> images(T* data, int64_t pixels) const {
    return {data, geometry.channels, pixels * geometry.channels};
  }

 private:
  static Tensor checked(const Tensor& x, const std::vector<int64_t>& candidates, int64_t stride) {
    check_activations(kOp, "x", x);
    STD_TORCH_CHECK(stride == 1 || stride == 2, kOp, ": stride is ", stride, ", expected 1 or 2");
    check_candidates(kOp, candidates, stride, x.size(4));
    return x;
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor weights, Tensor params,
                                           std::optional<Tensor> running,
                                           std::optional<Tensor> counts,
                                           std::vector<int64_t> candidates, int64_t stride,
                                           bool affine, double eps, int64_t keep) {
  const Inputs in(x, weights, params, counts, candidates, stride, affine, keep);
  const bool training = !running.has_value();
  Tensor stats = pooled_like(x, in.stats_shape());
  if (!training) {
    check_shape(kOp, "running", *running, in.stats_shape());
    check_like(kOp, "running", *running, x);
    torch::stable::copy_(stats, *running);
  } else if (!in.plan.norms.empty()) {
    check_variance(kOp, in.counts, in.geometry.out_pixels(), x);
  }
  Tensor z = pooled_like(x, in.z_shape());
  Tensor out = pooled_like(x, in.out_shape());
  in.counts.zero_rest(z, in.plan.kept);
  in.counts.zero_rest(out);
  with_element_type(x, [&]<class T>() {
    T* to = static_cast<T*>(out.mutable_data_ptr());
    mixed_op_kernels<T>(isa_for(in.geometry.channels, sizeof(T)))
        .forward({in.args<T>(stats, z, training, eps),
                  {{in.images(to, in.geometry.out_pixels()), false}}});
  });
  return {out, stats, z};
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_out, Tensor x, Tensor weights,
                                            Tensor params, Tensor stats, Tensor z,
                                            std::optional<Tensor> counts,
                                            std::vector<int64_t> candidates, int64_t stride,
                                            bool affine, double eps, int64_t keep, bool training,
                                            bool need_x, bool need_params) {
  const Inputs in(x, weights, params, counts, candidates, stride, affine, keep);
  check_shape(kOp, "grad_out", grad_out, in.out_shape());
  check_shape(kOp, "stats", stats, in.stats_shape());
  check_shape(kOp, "z", z, in.z_shape());
  for (const auto& [name, t] : {std::pair{"grad_out", grad_out}, {"stats", stats}, {"z", z}}) {
    check_like(kOp, name, t, x);
  }
  const Tensor grad = torch::stable::contiguous(grad_out);
  const Tensor own_stats = torch::stable::contiguous(stats);
  const Tensor own_z = torch::stable::contiguous(z);
  Tensor grad_x = make_if(need_x, in.x);
  Tensor grad_weights = make_if(true, in.weights);
  Tensor grad_params = make_if(need_params, in.params);
  if (need_x) in.counts.zero_rest(grad_x);
  with_element_type(x, [&]<class T>() {
    T* to_x = static_cast<T*>(grad_x.mutable_data_ptr());
    T* to_params = static_cast<T*>(grad_params.mutable_data_ptr());
    mixed_op_kernels<T>(isa_for(in.geometry.channels, sizeof(T)))
        .backward({in.args<T>(own_stats, own_z, training, eps),
                   {in.images(grad.const_data_ptr<T>(), in.geometry.out_pixels())},
                   {},
                   need_x ? in.images(to_x, in.geometry.in_pixels()) : Images<T>{},
                   static_cast<T*>(grad_weights.mutable_data_ptr()),
                   need_params ? to_params : nullptr,
                   in.plan.parameters});
  });
  return {grad_x, grad_weights, grad_params};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("mixed_op_forward", TORCH_BOX(&forward));
  m.impl("mixed_op_backward", TORCH_BOX(&backward));
}

}  // namespace metadnas
