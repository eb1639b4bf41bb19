// A whole cell: the mixed operations that leave one state run together, add straight into their
// nodes, and the nodes are slices of the concatenated output. Checks and allocation, for every
// device; those are the devices of mixed operations (mixed_op/operator.h).
#pragma once

#include <optional>
#include <tuple>

#include "cell/graph.h"
#include "mixed_op/args.h"
#include "mixed_op/inputs.h"

namespace metadnas::cell {

inline constexpr const char* kOp = "cell";

inline CellGraph make_graph(const std::vector<int64_t>& sources,
                            const std::vector<int64_t>& targets,
                            const std::vector<int64_t>& candidates, bool reduction,
                            int64_t channels) {
  const size_t edges = sources.size();
  check(edges > 0 && targets.size() == edges, kOp, ": sources has ", edges, " edges, targets ",
        targets.size(), ", expected as many, and at least 1");
  check(!candidates.empty() && candidates.size() % edges == 0, kOp, ": candidates has ",
        candidates.size(), " entries, expected the same number for each of ", edges, " edges");
  const size_t each = candidates.size() / edges;
  CellGraph graph;
  graph.reduction = reduction;
  graph.sources = sources;
  graph.targets = targets;
  for (size_t e = 0; e < edges; ++e) {
    check(targets[e] >= 0 && targets[e] < static_cast<int64_t>(edges), kOp, ": targets[", e,
          "] is ", targets[e], ", expected a node in [0, ", edges, ")");
    check(sources[e] >= 0 && sources[e] < kCellInputs + targets[e], kOp, ": sources[", e, "] is ",
          sources[e], ", expected a state before node ", targets[e]);
    if (targets[e] >= graph.nodes) graph.nodes = static_cast<int>(targets[e]) + 1;
  }
  std::vector<bool> reached(static_cast<size_t>(graph.nodes));
  for (size_t e = 0; e < edges; ++e) {
    reached[static_cast<size_t>(targets[e])] = true;
    const auto begin = candidates.begin() + static_cast<int64_t>(e * each);
    graph.candidates.emplace_back(begin, begin + static_cast<int64_t>(each));
    check_candidates(kOp, graph.candidates.back(), graph.stride(static_cast<int>(sources[e])),
                     channels);
  }
  for (size_t node = 0; node < reached.size(); ++node) {
    check(reached[node], kOp, ": no edge ends at node ", node);
  }
  return graph;
}

// Checked inputs that forward and backward share.
struct Inputs {
  Tensor states[kCellInputs];
  Tensor weights, params;
  CountedImages counts;
  CellGraph graph;
  CellPlan plan;
  Geometry geometry;  // of the inputs' edges

  Inputs(const Tensor& s0, const Tensor& s1, const Tensor& weights_in, const Tensor& params_in,
         const std::optional<Tensor>& counts_in, const std::vector<int64_t>& sources,
         const std::vector<int64_t>& targets, const std::vector<int64_t>& candidates,
         bool reduction, bool affine, int64_t keep)
      : states{s0, s1},
        weights(weights_in),
        params(params_in),
        counts(kOp, counts_in, s0),
        graph(make_graph(sources, targets, candidates, reduction, s0.size(4))),
        plan(plan_cell(graph, static_cast<int>(s0.size(4)), affine, checked_keep(kOp, keep))) {
    check_shape(kOp, "s1", s1, {s0.size(0), s0.size(1), s0.size(2), s0.size(3), s0.size(4)});
    check_like(kOp, "s1", s1, s0);
    const int stride = reduction ? 2 : 1;
    const auto cut = [&](int64_t size) { return static_cast<int>((size + stride - 1) / stride); };
    geometry = {s0.size(0),
                s0.size(1),
                static_cast<int>(s0.size(2)),
                static_cast<int>(s0.size(3)),
                static_cast<int>(s0.size(4)),
                stride,
                cut(s0.size(2)),
                cut(s0.size(3))};
    const auto edges = static_cast<int64_t>(sources.size());
    check_shape(kOp, "weights", weights,
                {geometry.clients, edges, static_cast<int64_t>(candidates.size()) / edges});
    check_shape(kOp, "params", params, {geometry.clients, plan.parameters});
    check_wide(kOp, "weights", weights, s0);
    check_wide(kOp, "params", params, s0);
    for (Tensor& state : states) state = torch::stable::contiguous(state);
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
            int64_t{geometry.channels} * graph.nodes};
  }
  int64_t node_size() const {
    return geometry.clients * geometry.images * geometry.out_pixels() * geometry.channels;
  }

  // A node's channels within a tensor of the output's shape.
  template <class S>
  Images<S> node(S* out, int index) const {
    const int64_t pitch = int64_t{geometry.channels} * graph.nodes;
    return {out + index * geometry.channels, pitch, geometry.out_pixels() * pitch};
  }
  // A tensor of its own for a node or, with in_pixels, an input.
  template <class S>
  Images<S> whole(S* data, int64_t pixels) const {
    return {data, geometry.channels, pixels * geometry.channels};
  }

  template <class T, class S>
  MixedOpArgs<T, S> args(const Fan& fan, const Tensor& out, const Tensor& stats, const Tensor& z,
                         bool training, double eps) const {
    const bool input = fan.state < kCellInputs;
    Geometry own = geometry;
    own.stride = graph.stride(fan.state);
    if (!input) {
      own.height = geometry.out_height;
      own.width = geometry.out_width;
    }
    const auto* data = static_cast<const S*>((input ? states[fan.state] : out).const_data_ptr());
    const Images<const S> x =
        input ? whole(data, geometry.in_pixels()) : node(data, fan.state - kCellInputs);
    return {fan.plan,
            own,
            training,
            eps,
            counts.data(),
            x,
            weights.const_data_ptr<T>(),
            weights.size(1) * weights.size(2),
            params.const_data_ptr<T>(),
            params.stride(0),
            static_cast<T*>(stats.mutable_data_ptr()),
            plan.norm_slots * 2 * geometry.channels,
            static_cast<S*>(z.mutable_data_ptr())};
  }
};

template <class Device, class T, class S>
void run_forward(const Inputs& in, Tensor& out, const Tensor& stats, const Tensor& z, bool training,
                 double eps) {
  std::vector<bool> begun(static_cast<size_t>(in.graph.nodes));
  S* to = static_cast<S*>(out.mutable_data_ptr());
  for (const Fan& fan : in.plan.fans) {
    MixedOpForward<T, S> args{in.args<T, S>(fan, out, stats, z, training, eps), {}};
    for (const int target : fan.targets) {
      args.out.push_back({in.node(to, target), begun[static_cast<size_t>(target)]});
      begun[static_cast<size_t>(target)] = true;
    }
    Device::run(in.states[0], args);
  }
}

// Gradients of the nodes that others read, and of the inputs, from the last state to the first.
template <class Device, class T, class S>
void run_backward(const Inputs& in, const Tensor& grad_out, const Tensor& out, const Tensor& stats,
                  const Tensor& z, double eps, bool training, Tensor (&grad_states)[kCellInputs],
                  const bool (&needed)[kCellInputs], Tensor& grad_nodes, Tensor& grad_weights,
                  T* grad_params) {
  const S* from = static_cast<const S*>(grad_out.const_data_ptr());
  S* nodes = static_cast<S*>(grad_nodes.mutable_data_ptr());
  std::vector<Images<const S>> grads;  // complete for every node after the state at hand
  for (int node = 0; node < in.graph.nodes; ++node) grads.push_back(in.node(from, node));
  for (size_t f = in.plan.fans.size(); f-- > 0;) {
    const Fan& fan = in.plan.fans[f];
    MixedOpBackward<T, S> args{in.args<T, S>(fan, out, stats, z, training, eps),
                               {},
                               {},
                               {},
                               static_cast<T*>(grad_weights.mutable_data_ptr()),
                               grad_params,
                               in.plan.parameters};
    for (const int target : fan.targets) {
      args.grad_out.push_back(grads[static_cast<size_t>(target)]);
    }
    const int node = fan.state - kCellInputs;
    if (node >= 0) {
      args.base = grads[static_cast<size_t>(node)];
      args.grad_x = in.whole(nodes + node * in.node_size(), in.geometry.out_pixels());
      grads[static_cast<size_t>(node)] = {args.grad_x.data, args.grad_x.pitch, args.grad_x.image};
    } else if (needed[fan.state]) {
      args.grad_x = in.whole(static_cast<S*>(grad_states[fan.state].mutable_data_ptr()),
                             in.geometry.in_pixels());
    }
    Device::run(in.states[0], args);
  }
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor> forward(
    Tensor s0, Tensor s1, Tensor weights, Tensor params, std::optional<Tensor> running,
    std::optional<Tensor> counts, std::vector<int64_t> sources, std::vector<int64_t> targets,
    std::vector<int64_t> candidates, bool reduction, bool affine, double eps, int64_t keep) {
  check_activations(kOp, "s0", s0, Device::kHalf);
  const Inputs in(s0, s1, weights, params, counts, sources, targets, candidates, reduction, affine,
                  keep);
  const bool training = !running.has_value();
  if (!training) {
    check_shape(kOp, "running", *running, in.stats_shape());
    check_wide(kOp, "running", *running, s0);
  } else if (in.plan.norm_slots > 0) {
    check_variance(kOp, in.counts, in.geometry.out_pixels(), s0);
  }
  Tensor stats = Device::empty(s0, in.stats_shape(), wide_type(s0));
  if (!training) torch::stable::copy_(stats, *running);
  Tensor z = Device::empty(s0, in.z_shape(), s0.scalar_type());
  Tensor out = Device::empty(s0, in.out_shape(), s0.scalar_type());
  Device::zero_rest(in.counts, z, in.plan.kept);
  Device::zero_rest(in.counts, out);
  Device::with_types(
      s0, [&]<class T, class S>() { run_forward<Device, T, S>(in, out, stats, z, training, eps); });
  return {out, stats, z};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_out, Tensor s0, Tensor s1, Tensor weights, Tensor params, Tensor out, Tensor stats,
    Tensor z, std::optional<Tensor> counts, std::vector<int64_t> sources,
    std::vector<int64_t> targets, std::vector<int64_t> candidates, bool reduction, bool affine,
    double eps, int64_t keep, bool training, bool need_s0, bool need_s1, bool need_params) {
  check_activations(kOp, "s0", s0, Device::kHalf);
  const Inputs in(s0, s1, weights, params, counts, sources, targets, candidates, reduction, affine,
                  keep);
  check_shape(kOp, "grad_out", grad_out, in.out_shape());
  check_shape(kOp, "out", out, in.out_shape());
  check_shape(kOp, "stats", stats, in.stats_shape());
  check_shape(kOp, "z", z, in.z_shape());
  check_like(kOp, "grad_out", grad_out, s0);
  check_like(kOp, "out", out, s0);
  check_wide(kOp, "stats", stats, s0);
  check_like(kOp, "z", z, s0);
  const Tensor grad = torch::stable::contiguous(grad_out);
  const Tensor own_out = torch::stable::contiguous(out);
  const Tensor own_stats = torch::stable::contiguous(stats);
  const Tensor own_z = torch::stable::contiguous(z);
  const bool needed[kCellInputs] = {need_s0, need_s1};
  Tensor grad_states[kCellInputs] = {Device::empty(s0, sizes_if(need_s0, s0), s0.scalar_type()),
                                     Device::empty(s0, sizes_if(need_s1, s1), s0.scalar_type())};
  for (int state = 0; state < kCellInputs; ++state) {
    const bool read =
        !in.plan.fans.empty() && (in.plan.fans[0].state == state ||
                                  (in.plan.fans.size() > 1 && in.plan.fans[1].state == state));
    if (needed[state] && !read) torch::stable::zero_(grad_states[state]);
    if (needed[state]) Device::zero_rest(in.counts, grad_states[state]);
  }
  Tensor grad_weights = Device::empty(s0, sizes_if(true, in.weights), wide_type(s0));
  Tensor grad_params = Device::empty(s0, sizes_if(need_params, in.params), wide_type(s0));
  Tensor grad_nodes = Device::empty(s0, {in.graph.nodes, in.node_size()}, s0.scalar_type());
  Device::with_types(s0, [&]<class T, class S>() {
    T* params_to = static_cast<T*>(grad_params.mutable_data_ptr());
    run_backward<Device, T, S>(in, grad, own_out, own_stats, own_z, eps, training, grad_states,
                               needed, grad_nodes, grad_weights, need_params ? params_to : nullptr);
  });
  return {grad_states[0], grad_states[1], grad_weights, grad_params};
}

}  // namespace metadnas::cell
