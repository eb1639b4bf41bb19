// One mixed operation to test: its inputs, its truth, and a run of the kernels between guards.
#pragma once

#include <algorithm>
#include <limits>
#include <memory>

#include "guarded.h"
#include "harness.h"
#include "mixed_op/cpu/kernels.h"
#include "truth.h"

namespace testing {

using metadnas::Geometry;
using metadnas::Images;
using metadnas::Isa;
using metadnas::Keep;

namespace mixed_op {

struct Case {
  int clients = 1, images = 2, height = 4, width = 4, channels = 3, stride = 1;
  std::vector<std::vector<int64_t>> edges;
  std::vector<int> targets;  // output of each edge; a later edge adds to what an earlier one wrote
  bool affine = false, training = true;
  bool prefilled = false;  // the first edge of an output adds, too
  bool base = false, need_x = true, need_params = true;
  Keep keep = Keep::kAll;
  std::vector<int64_t> counts;  // empty: all images
  int x_gap = 0, out_gap = 0;   // pitch beyond the channels
  double eps = 1e-2;
  double mean = 0;
  bool coarse = false;  // few distinct values: equal maxima, zeros
  uint64_t seed = 0;

  int out_height() const { return halved(height, stride); }
  int out_width() const { return halved(width, stride); }
  int64_t in_pixels() const { return int64_t{1} * height * width; }
  int64_t out_pixels() const { return int64_t{1} * out_height() * out_width(); }
  int outputs() const { return *std::max_element(targets.begin(), targets.end()) + 1; }
  int count(int g) const {
    return counts.empty() ? images : static_cast<int>(counts[static_cast<size_t>(g)]);
  }
  int weights() const {
    int total = 0;
    for (const auto& edge : edges) total += static_cast<int>(edge.size());
    return total;
  }
  int params() const {
    int total = 0;
    for (const auto& edge : edges)
      for (const int64_t kind : edge) total += candidate_params(kind, channels, stride, affine);
    return total;
  }
  int norms() const {
    int total = 0;
    for (const auto& edge : edges)
      for (const int64_t kind : edge) total += candidate_norms(kind, stride);
    return total;
  }

  std::string text() const {
    std::string s = "mixed_op(" + std::to_string(clients) + ", " + std::to_string(images) + ", " +
                    std::to_string(height) + ", " + std::to_string(width) + ", " +
                    std::to_string(channels) + ") stride " + std::to_string(stride) + " edges ";
    for (size_t e = 0; e < edges.size(); ++e) {
      s += "[";
      for (const int64_t kind : edges[e]) s += std::to_string(kind);
      s += "->" + std::to_string(targets[e]) + "]";
    }
    s += " keep " + std::to_string(static_cast<int>(keep)) + (affine ? " affine" : "") +
         (training ? "" : " eval") + (prefilled ? " prefilled" : "") + (base ? " base" : "") +
         (need_x ? "" : " no_x") + (need_params ? "" : " no_params") + (coarse ? " coarse" : "");
    for (const int64_t n : counts) s += " n" + std::to_string(n);
    return s + " gaps " + std::to_string(x_gap) + " " + std::to_string(out_gap) + " seed " +
           std::to_string(seed);
  }
};

// Dense: no gaps, all images; those that do not count are NaN in the inputs.
struct Inputs {
  std::vector<double> x, weights, params, running, before, grad_out, base;

  explicit Inputs(const Case& c) {
    Random random(c.seed);
    const int64_t all = int64_t{1} * c.clients * c.images;
    x = random.numbers(all * c.in_pixels() * c.channels);
    for (double& v : x) v = (c.coarse ? std::round(v * 2) / 2 : v) + c.mean;
    weights = random.numbers(int64_t{1} * c.clients * c.weights());
    params = random.numbers(int64_t{1} * c.clients * c.params());
    running = random.numbers(int64_t{1} * c.clients * c.norms() * 2 * c.channels);
    for (size_t i = 0; i < running.size(); ++i) {
      if (i / static_cast<size_t>(c.channels) % 2 == 1) running[i] = std::fabs(running[i]) + 0.5;
    }
    const int64_t out = all * c.out_pixels() * c.channels * c.outputs();
    before = random.numbers(out);
    grad_out = random.numbers(out);
    base = random.numbers(static_cast<int64_t>(x.size()));
    for (int g = 0; g < c.clients; ++g) {
      for (int n = c.count(g); n < c.images; ++n) {
        const int64_t at = int64_t{1} * g * c.images + n;
        void_image(x, at, c.in_pixels() * c.channels);
        void_image(base, at, c.in_pixels() * c.channels);
        for (int t = 0; t < c.outputs(); ++t) {
          void_image(grad_out, t * all + at, c.out_pixels() * c.channels);
        }
      }
    }
  }

 private:
  static void void_image(std::vector<double>& all, int64_t index, int64_t size) {
    std::fill_n(all.begin() + index * size, size, std::numeric_limits<double>::quiet_NaN());
  }
};

// As Inputs; what is not wanted is empty.
struct Results {
  std::vector<double> out, stats, grad_x, grad_weights, grad_params;
};

template <class S, class Make>
std::vector<S> numbers(const std::vector<double>& from, int64_t begin, int64_t size, Make&& make) {
  std::vector<S> to;
  for (int64_t i = begin; i < begin + size; ++i) to.push_back(make(from[static_cast<size_t>(i)]));
  return to;
}

// Images that do not count are NaN where a result has images.
template <class S>
Results truth(const Case& c, const Inputs& in, bool differentiate) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Results r;
  const int64_t x_size = c.in_pixels() * c.channels, out_size = c.out_pixels() * c.channels;
  const int64_t all = int64_t{1} * c.clients * c.images;
  r.out.assign(static_cast<size_t>(all * out_size * c.outputs()), nan);
  r.grad_x.assign(in.x.size(), nan);
  closest_to_zero = 1;
  auto make = [](double v) {
    if constexpr (sizeof(S) == sizeof(double)) {
      return v;
    } else {
      return Var::leaf(v);
    }
  };
  for (int g = 0; g < c.clients; ++g) {
    const int count = c.count(g);
    std::vector<double> stats(static_cast<size_t>(c.norms()) * 2 * c.channels);
    const double* running =
        c.training ? nullptr : in.running.data() + static_cast<size_t>(g) * stats.size();
    if (count == 0) {
      if (!c.training) stats.assign(running, running + stats.size());
      r.stats.insert(r.stats.end(), stats.begin(), stats.end());
      r.grad_weights.insert(r.grad_weights.end(), static_cast<size_t>(c.weights()), 0.0);
      r.grad_params.insert(r.grad_params.end(), static_cast<size_t>(c.params()), 0.0);
      continue;
    }
    tape.clear();
    Map<S> x(count, c.height, c.width, c.channels);
    x.v = numbers<S>(in.x, g * c.images * x_size, count * x_size, make);
    const auto weights = numbers<S>(in.weights, int64_t{1} * g * c.weights(), c.weights(), make);
    const auto params = numbers<S>(in.params, int64_t{1} * g * c.params(), c.params(), make);
    Cursor<S> cursor{params.data(), running, stats.data(), c.affine, c.eps};
    std::vector<Map<S>> outs(static_cast<size_t>(c.outputs()),
                             Map<S>(count, c.out_height(), c.out_width(), c.channels));
    size_t weight = 0;
    for (size_t e = 0; e < c.edges.size(); ++e) {
      Map<S>& out = outs[static_cast<size_t>(c.targets[e])];
      for (const int64_t kind : c.edges[e]) {
        Map<S> one(0, 0, 0, 0);
        const S w = weights[weight++];
        if (!candidate(kind, x, c.stride, cursor, one)) continue;
        for (size_t i = 0; i < out.v.size(); ++i) out.v[i] += w * one.v[i];
      }
    }
    r.stats.insert(r.stats.end(), stats.begin(), stats.end());
    S loss(0);
    for (int t = 0; t < c.outputs(); ++t) {
      const int64_t at = (t * all + int64_t{1} * g * c.images) * out_size;
      const auto& v = outs[static_cast<size_t>(t)].v;
      for (size_t i = 0; i < v.size(); ++i) {
        const size_t to = static_cast<size_t>(at) + i;
        r.out[to] = value(v[i]) + (c.prefilled ? in.before[to] : 0);
        if (differentiate) loss += v[i] * S(in.grad_out[to]);
      }
    }
    if constexpr (sizeof(S) != sizeof(double)) {
      const std::vector<double> grads = gradients(loss);
      auto grad = [&](S v) { return grads[static_cast<size_t>(v.id)]; };
      for (size_t i = 0; i < x.v.size(); ++i) {
        const size_t to = static_cast<size_t>(g * c.images * x_size) + i;
        r.grad_x[to] = grad(x.v[i]) + (c.base ? in.base[to] : 0);
      }
      for (const S v : weights) r.grad_weights.push_back(grad(v));
      for (const S v : params) r.grad_params.push_back(grad(v));
    }
  }
  return r;
}

// Images of `channels` channels, some elements apart: exactly as long as their last pixel needs.
// Gaps stay all ones (NaN), and it is checked that they do.
template <class T>
class Apart {
 public:
  Apart(int64_t images, int64_t pixels, int channels, int gap)
      : count_(images * pixels),
        channels_(channels),
        pitch_(channels + gap),
        pixels_(pixels),
        memory_((count_ - 1) * pitch_ + channels) {}

  void fill(const double* from) {
    for (int64_t p = 0; p < count_; ++p)
      for (int c = 0; c < channels_; ++c) {
        memory_[p * pitch_ + c] = static_cast<T>(from[p * channels_ + c]);
      }
  }
  void read(std::vector<double>& to, const std::string& what) const {
    for (int64_t p = 0; p < count_; ++p) {
      for (int64_t c = 0; c < pitch_ && p * pitch_ + c < memory_.size(); ++c) {
        const double v = static_cast<double>(memory_[p * pitch_ + c]);
        if (c < channels_) {
          to.push_back(v);
        } else if (!std::isnan(v)) {
          fail(what + ": wrote between the pixels");
        }
      }
    }
  }
  Images<T> images() const { return {memory_.data(), pitch_, pixels_ * pitch_}; }
  Images<const T> constant() const { return {memory_.data(), pitch_, pixels_ * pitch_}; }

 private:
  int64_t count_;
  int channels_;
  int64_t pitch_;
  int64_t pixels_;
  Guarded<T> memory_;
};

// Rows of a client, `gap` elements apart.
struct Rows {
  int64_t clients, size, gap;

  int64_t stride() const { return size + gap; }
  int64_t total() const { return clients * stride(); }
  template <class T>
  void fill(const Guarded<T>& to, const std::vector<double>& from) const {
    for (int64_t i = 0; i < clients * size; ++i) {
      to[i / size * stride() + i % size] = static_cast<T>(from[static_cast<size_t>(i)]);
    }
  }
  template <class T>
  std::vector<double> read(const Guarded<T>& from, const std::string& what) const {
    std::vector<double> to;
    for (int64_t i = 0; i < total(); ++i) {
      const double v = static_cast<double>(from[i]);
      if (i % stride() < size) {
        to.push_back(v);
      } else if (!std::isnan(v)) {
        fail(what + ": wrote between the rows");
      }
    }
    return to;
  }
};

template <class T>
Results run(Isa isa, const Case& c, const Inputs& in, const std::string& what) {
  const int64_t all = int64_t{1} * c.clients * c.images;
  std::vector<metadnas::EdgeSpec> specs;
  metadnas::EdgeSpec next;
  for (const auto& edge : c.edges) {
    next.candidates = edge;
    specs.push_back(next);
    for (const int64_t kind : edge) {
      next.weights += 1;
      next.params += candidate_params(kind, c.channels, c.stride, c.affine);
      next.norms += candidate_norms(kind, c.stride);
    }
  }
  const metadnas::Plan plan = metadnas::make_plan(specs, c.channels, c.stride, c.affine, c.keep);
  check(plan.parameters == c.params() && plan.norm_slots == c.norms(), what + ": sizes of rows");

  const Rows weight_rows{c.clients, c.weights(), 1}, param_rows{c.clients, c.params(), 3};
  const Rows stat_rows{c.clients, int64_t{2} * c.norms() * c.channels, 2};
  Guarded<T> weights(weight_rows.total()), params(param_rows.total()), stats(stat_rows.total());
  weight_rows.fill(weights, in.weights);
  param_rows.fill(params, in.params);
  if (!c.training) stat_rows.fill(stats, in.running);
  Apart<T> x(all, c.in_pixels(), c.channels, c.x_gap);
  x.fill(in.x.data());
  Guarded<T> z(plan.kept * all * c.out_pixels() * c.channels);
  const std::unique_ptr<Guarded<int64_t>> counts(
      c.counts.empty() ? nullptr : new Guarded<int64_t>(c.clients));
  for (size_t g = 0; g < c.counts.size(); ++g) (*counts)[static_cast<int64_t>(g)] = c.counts[g];

  const Geometry geometry{c.clients,  c.images, c.height,       c.width,
                          c.channels, c.stride, c.out_height(), c.out_width()};
  const metadnas::MixedOpArgs<T> args{plan,
                                      geometry,
                                      c.training,
                                      c.eps,
                                      counts ? counts->data() : nullptr,
                                      x.constant(),
                                      weights.data(),
                                      weight_rows.stride(),
                                      params.data(),
                                      param_rows.stride(),
                                      stats.data(),
                                      stat_rows.stride(),
                                      z.data()};

  const int64_t out_size = all * c.out_pixels() * c.channels;
  std::vector<std::unique_ptr<Apart<T>>> outs, grads;
  metadnas::MixedOpForward<T> forward{args, {}};
  for (int t = 0; t < c.outputs(); ++t) {
    outs.emplace_back(new Apart<T>(all, c.out_pixels(), c.channels, c.out_gap));
    grads.emplace_back(new Apart<T>(all, c.out_pixels(), c.channels, c.out_gap));
    if (c.prefilled) outs.back()->fill(in.before.data() + t * out_size);
    grads.back()->fill(in.grad_out.data() + t * out_size);
  }
  std::vector<bool> begun(outs.size(), c.prefilled);
  for (const int target : c.targets) {
    const size_t t = static_cast<size_t>(target);
    forward.out.push_back({outs[t]->images(), begun[t]});
    begun[t] = true;
  }
  metadnas::mixed_op_kernels<T>(isa).forward(forward);
  Results r;
  for (const auto& out : outs) out->read(r.out, what + " out");
  r.stats = stat_rows.read(stats, what + " stats");

  Guarded<T> grad_weights(weight_rows.total()), grad_params(c.need_params ? param_rows.total() : 0);
  Apart<T> grad_x(all, c.in_pixels(), c.channels, c.x_gap), base(all, c.in_pixels(), c.channels, 2);
  base.fill(in.base.data());
  metadnas::MixedOpBackward<T> backward{args,
                                        {},
                                        c.base ? base.constant() : Images<const T>{},
                                        c.need_x ? grad_x.images() : Images<T>{},
                                        grad_weights.data(),
                                        c.need_params ? grad_params.data() : nullptr,
                                        param_rows.stride()};
  for (const int target : c.targets) {
    backward.grad_out.push_back(grads[static_cast<size_t>(target)]->constant());
  }
  metadnas::mixed_op_kernels<T>(isa).backward(backward);
  if (c.need_x) grad_x.read(r.grad_x, what + " grad_x");
  r.grad_weights = weight_rows.read(grad_weights, what + " grad_weights");
  if (c.need_params) r.grad_params = param_rows.read(grad_params, what + " grad_params");
  return r;
}

}  // namespace mixed_op
}  // namespace testing
