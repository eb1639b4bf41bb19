// The mixed operation on the CPU: checks, allocation, dispatch to the kernels of this processor.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <optional>
#include <tuple>

#include "common/checks.h"
#include "mixed_op/cpu/isa.h"

namespace metadnas {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;

constexpr const char* kOp = "mixed_op";

void check_candidates(const std::vector<int64_t>& candidates, int64_t stride, int64_t channels) {
  STD_TORCH_CHECK(stride == 1 || stride == 2, kOp, ": stride is ", stride, ", expected 1 or 2");
  STD_TORCH_CHECK(!candidates.empty(), kOp, ": candidates is empty");
  bool seen[kCandidates] = {};
  for (const int64_t c : candidates) {
    STD_TORCH_CHECK(c >= 0 && c < kCandidates, kOp, ": candidate ", c, " is not in [0, ",
                    kCandidates, ")");
    STD_TORCH_CHECK(!seen[c], kOp, ": candidate ", c, " is named twice");
    seen[c] = true;
  }
  STD_TORCH_CHECK(!(stride == 2 && seen[static_cast<int>(Candidate::kSkip)] && channels % 2 != 0),
                  kOp,
                  ": a stride-2 skip_connect (factorized reduce) needs an even number of "
                  "channels, got ",
                  channels);
}

Tensor make_like(const Tensor& x, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(x, IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
}

Keep checked_keep(int64_t keep) {
  STD_TORCH_CHECK(keep >= 0 && keep <= static_cast<int64_t>(Keep::kInput), kOp, ": keep is ", keep,
                  ", expected 0 (all results), 1 (middle results) or 2 (only the input)");
  return static_cast<Keep>(keep);
}

// Checked inputs that forward and backward share.
struct Inputs {
  Plan plan;
  Geometry geometry;
  Tensor x, weights, params;
  std::optional<Tensor> counts;

  Inputs(const Tensor& x_in, const Tensor& weights_in, const Tensor& params_in,
         const std::optional<Tensor>& counts_in, const std::vector<int64_t>& candidates,
         int64_t stride, bool affine, int64_t keep) {
    STD_TORCH_CHECK(x_in.dim() == 5, kOp, ": x has shape ", shape_text(x_in),
                    ", expected (G, N, H, W, C)");
    check_floating(kOp, "x", x_in);
    STD_TORCH_CHECK(x_in.is_cpu(), kOp, ": x is not on the CPU");
    for (int64_t d = 0; d < 5; ++d) {
      STD_TORCH_CHECK(x_in.size(d) >= 1, kOp, ": x has shape ", shape_text(x_in),
                      ", expected every size to be at least 1");
    }
    const int64_t channels = x_in.size(4);
    check_candidates(candidates, stride, channels);
    plan = make_plan({{candidates}}, static_cast<int>(channels), static_cast<int>(stride), affine,
                     checked_keep(keep));
    const int64_t clients = x_in.size(0);
    check_shape(kOp, "weights", weights_in, {clients, static_cast<int64_t>(candidates.size())});
    check_shape(kOp, "params", params_in, {clients, plan.parameters});
    check_like(kOp, "weights", weights_in, x_in);
    check_like(kOp, "params", params_in, x_in);
    const auto half = [&](int64_t size) { return static_cast<int>((size + stride - 1) / stride); };
    geometry = {clients,
                x_in.size(1),
                static_cast<int>(x_in.size(2)),
                static_cast<int>(x_in.size(3)),
                static_cast<int>(channels),
                static_cast<int>(stride),
                half(x_in.size(2)),
                half(x_in.size(3))};
    x = torch::stable::contiguous(x_in);
    weights = torch::stable::contiguous(weights_in);
    const bool rows = plan.parameters <= 1 || params_in.stride(1) == 1;
    params = rows ? params_in : torch::stable::contiguous(params_in);
    if (counts_in.has_value()) take_counts(*counts_in);
  }

  // Output positions a batch norm averages over, for the client with the fewest.
  int64_t fewest_positions() const {
    int64_t fewest = geometry.images;
    for (int64_t g = 0; counts.has_value() && g < geometry.clients; ++g) {
      const int64_t n = counts->const_data_ptr<int64_t>()[g];
      if (n > 0 && n < fewest) fewest = n;  // a client without images is skipped, not an error
    }
    return fewest * geometry.out_pixels();
  }

  template <class T>
  MixedOpArgs<T> args(const Tensor& stats, const Tensor& z, bool training, double eps) const {
    return {plan,
            geometry,
            training,
            eps,
            counts.has_value() ? counts->const_data_ptr<int64_t>() : nullptr,
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
  void take_counts(const Tensor& given) {
    check_shape(kOp, "counts", given, {geometry.clients});
    STD_TORCH_CHECK(given.scalar_type() == ScalarType::Long && given.is_cpu(), kOp,
                    ": counts is not an int64 tensor on the CPU");
    counts = torch::stable::contiguous(given);
    for (int64_t g = 0; g < geometry.clients; ++g) {
      const int64_t n = counts->const_data_ptr<int64_t>()[g];
      STD_TORCH_CHECK(n >= 0 && n <= geometry.images, kOp, ": counts[", g, "] is ", n,
                      ", expected 0 to ", geometry.images);
    }
  }
};

std::vector<int64_t> stats_shape(const Inputs& in) {
  return {in.geometry.clients, in.plan.norm_slots, 2, in.geometry.channels};
}

std::vector<int64_t> z_shape(const Inputs& in) {
  const Geometry& g = in.geometry;
  return {in.plan.kept, g.clients, g.images, g.out_height, g.out_width, g.channels};
}

std::vector<int64_t> out_shape(const Inputs& in) {
  const Geometry& g = in.geometry;
  return {g.clients, g.images, g.out_height, g.out_width, g.channels};
}

// The kernels never touch images beyond a client's count: zeros there, in `outer` stacked (G, N,
// ...).
void zero_tails(const Inputs& in, Tensor& t, int64_t outer) {
  const int64_t clients = in.geometry.clients;
  const int64_t images = in.geometry.images;
  if (!in.counts.has_value() || outer == 0) return;
  const int64_t* counts = in.counts->const_data_ptr<int64_t>();
  const int64_t size = t.numel() / (outer * clients * images);
  const int64_t bytes = size * static_cast<int64_t>(t.element_size());
  char* data = static_cast<char*>(t.mutable_data_ptr());
  for (int64_t row = 0; row < outer * clients; ++row) {
    const int64_t used = counts[row % clients];
    std::memset(data + (row * images + used) * bytes, 0,
                static_cast<size_t>((images - used) * bytes));
  }
}

std::tuple<Tensor, Tensor, Tensor> forward(Tensor x, Tensor weights, Tensor params,
                                           std::optional<Tensor> running,
                                           std::optional<Tensor> counts,
                                           std::vector<int64_t> candidates, int64_t stride,
                                           bool affine, double eps, int64_t keep) {
  const Inputs in(x, weights, params, counts, candidates, stride, affine, keep);
  const bool training = !running.has_value();
  Tensor stats = make_like(x, stats_shape(in));
  if (!training) {
    check_shape(kOp, "running", *running, stats_shape(in));
    check_like(kOp, "running", *running, x);
    torch::stable::copy_(stats, *running);
  } else if (!in.plan.norms.empty()) {
    STD_TORCH_CHECK(in.fewest_positions() > 1, kOp,
                    ": batch statistics need more than 1 value per channel, got ",
                    in.fewest_positions(), "; x has shape ", shape_text(x));
  }
  Tensor z = make_like(x, z_shape(in));
  Tensor out = make_like(x, out_shape(in));
  zero_tails(in, z, in.plan.kept);
  zero_tails(in, out, 1);
  const auto run = [&]<class T>() {
    T* to = static_cast<T*>(out.mutable_data_ptr());
    kernels_for<T>(in.geometry.channels)
        .forward({in.args<T>(stats, z, training, eps),
                  {{in.images(to, in.geometry.out_pixels()), false}}});
  };
  x.scalar_type() == ScalarType::Float ? run.template operator()<float>()
                                       : run.template operator()<double>();
  return {out, stats, z};
}

std::tuple<Tensor, Tensor, Tensor> backward(Tensor grad_out, Tensor x, Tensor weights,
                                            Tensor params, Tensor stats, Tensor z,
                                            std::optional<Tensor> counts,
                                            std::vector<int64_t> candidates, int64_t stride,
                                            bool affine, double eps, int64_t keep, bool training,
                                            bool need_x, bool need_params) {
  const Inputs in(x, weights, params, counts, candidates, stride, affine, keep);
  check_shape(kOp, "grad_out", grad_out, out_shape(in));
  check_shape(kOp, "stats", stats, stats_shape(in));
  check_shape(kOp, "z", z, z_shape(in));
  for (const auto& [name, t] : {std::pair{"grad_out", grad_out}, {"stats", stats}, {"z", z}}) {
    check_like(kOp, name, t, x);
  }
  const Tensor grad = torch::stable::contiguous(grad_out);
  const Tensor own_stats = torch::stable::contiguous(stats);
  const Tensor own_z = torch::stable::contiguous(z);
  const auto wanted = [&](bool need, const Tensor& like) {
    std::vector<int64_t> sizes;
    for (int64_t d = 0; d < like.dim(); ++d) sizes.push_back(like.size(d));
    return make_like(x, need ? sizes : std::vector<int64_t>{0});
  };
  Tensor grad_x = wanted(need_x, x);
  Tensor grad_weights = wanted(true, weights);
  Tensor grad_params = wanted(need_params, params);
  if (need_x) zero_tails(in, grad_x, 1);
  const auto run = [&]<class T>() {
    T* to_x = static_cast<T*>(grad_x.mutable_data_ptr());
    T* to_params = static_cast<T*>(grad_params.mutable_data_ptr());
    kernels_for<T>(in.geometry.channels)
        .backward({in.args<T>(own_stats, own_z, training, eps),
                   {in.images(grad.const_data_ptr<T>(), in.geometry.out_pixels())},
                   {},
                   need_x ? in.images(to_x, in.geometry.in_pixels()) : Images<T>{},
                   static_cast<T*>(grad_weights.mutable_data_ptr()),
                   need_params ? to_params : nullptr,
                   in.plan.parameters});
  };
  x.scalar_type() == ScalarType::Float ? run.template operator()<float>()
                                       : run.template operator()<double>();
  return {grad_x, grad_weights, grad_params};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("mixed_op_forward", TORCH_BOX(&forward));
  m.impl("mixed_op_backward", TORCH_BOX(&backward));
}

}  // namespace metadnas
