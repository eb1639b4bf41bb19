// ReLU, 1x1 convolution (or factorized reduce) and batch norm against plain loops.
#include <algorithm>
#include <limits>
#include <memory>

#include "guarded.h"
#include "harness.h"
#include "relu_conv_bn/cpu/kernels.h"
#include "suites.h"
#include "truth.h"

namespace testing {
namespace {

using metadnas::Isa;
using metadnas::relu_conv_bn::Shape;

struct Case {
  Shape shape;
  bool relu, affine, training, need_x, need_params;
  std::vector<int64_t> counts;
  uint64_t seed;

  int64_t params() const {
    return shape.weights() + (affine ? int64_t{2} * shape.out_channels : 0);
  }
  int64_t count(int64_t g) const {
    return counts.empty() ? shape.images : counts[static_cast<size_t>(g)];
  }
  std::string text() const {
    std::string s = "relu_conv_bn(" + std::to_string(shape.clients) + ", " +
                    std::to_string(shape.images) + ", " + std::to_string(shape.height) + ", " +
                    std::to_string(shape.width) + ", " + std::to_string(shape.in_channels) +
                    ") to " + std::to_string(shape.out_channels) + " stride " +
                    std::to_string(shape.stride) + (relu ? " relu" : "") +
                    (affine ? " affine" : "") + (training ? "" : " eval") +
                    (need_x ? "" : " no_x") + (need_params ? "" : " no_params");
    for (const int64_t n : counts) s += " n" + std::to_string(n);
    return s + " seed " + std::to_string(seed);
  }
};

constexpr double kEps = 1e-2;

// NaN in what does not count.
struct Inputs {
  std::vector<double> x, params, running, grad_out;

  explicit Inputs(const Case& c) {
    Random random(c.seed);
    const Shape& s = c.shape;
    x = random.numbers(s.clients * s.images * s.in_image());
    params = random.numbers(s.clients * c.params());
    running = random.numbers(s.clients * 2 * s.out_channels);
    for (double& v : running) v = std::fabs(v) + 0.5;
    const int64_t out = s.out_pixels() * s.out_channels;
    grad_out = random.numbers(s.clients * s.images * out);
    const double nan = std::numeric_limits<double>::quiet_NaN();
    for (int64_t g = 0; g < s.clients; ++g) {
      const int64_t begin = g * s.images + c.count(g), rest = s.images - c.count(g);
      std::fill_n(x.begin() + begin * s.in_image(), rest * s.in_image(), nan);
      std::fill_n(grad_out.begin() + begin * out, rest * out, nan);
    }
  }
};

struct Results {
  std::vector<double> out, stats, grad_x, grad_params;
};

Results truth(const Case& c, const Inputs& in) {
  const Shape& s = c.shape;
  const double nan = std::numeric_limits<double>::quiet_NaN();
  Results r;
  r.out.assign(in.grad_out.size(), nan);
  r.grad_x.assign(in.x.size(), nan);
  for (int64_t g = 0; g < s.clients; ++g) {
    std::vector<double> stats(static_cast<size_t>(2 * s.out_channels));
    const double* running =
        c.training ? nullptr : in.running.data() + static_cast<size_t>(g) * stats.size();
    const int count = static_cast<int>(c.count(g));
    if (count == 0) {
      if (!c.training) stats.assign(running, running + stats.size());
      r.stats.insert(r.stats.end(), stats.begin(), stats.end());
      r.grad_params.insert(r.grad_params.end(), static_cast<size_t>(c.params()), 0.0);
      continue;
    }
    tape.clear();
    const size_t x_at = static_cast<size_t>(g * s.images * s.in_image());
    const size_t out_at = static_cast<size_t>(g * s.images * s.out_pixels() * s.out_channels);
    Map<Var> x(count, s.height, s.width, s.in_channels);
    for (size_t i = 0; i < x.v.size(); ++i) x.v[i] = Var::leaf(in.x[x_at + i]);
    std::vector<Var> params;
    for (int64_t i = 0; i < c.params(); ++i) {
      params.push_back(Var::leaf(in.params[static_cast<size_t>(g * c.params() + i)]));
    }
    const Map<Var> z = convolution(c.relu ? relu(x) : x, params.data(), s.out_channels, s.stride);
    const Map<Var> out = batch_norm(z, c.affine ? params.data() + s.weights() : nullptr, kEps,
                                    running, stats.data());
    Var loss;
    for (size_t i = 0; i < out.v.size(); ++i) {
      r.out[out_at + i] = out.v[i].v;
      loss += out.v[i] * Var(in.grad_out[out_at + i]);
    }
    const std::vector<double> grads = gradients(loss);
    for (size_t i = 0; i < x.v.size(); ++i) {
      r.grad_x[x_at + i] = grads[static_cast<size_t>(x.v[i].id)];
    }
    for (const Var& p : params) r.grad_params.push_back(grads[static_cast<size_t>(p.id)]);
    r.stats.insert(r.stats.end(), stats.begin(), stats.end());
  }
  return r;
}

template <class T>
Results run(Isa isa, const Case& c, const Inputs& in) {
  const Shape& s = c.shape;
  const int64_t gap = 3, stride = c.params() + gap;
  const Guarded<T> x(in.x), grad_out(in.grad_out);
  const Guarded<T> params(s.clients * stride);
  for (int64_t i = 0; i < s.clients * c.params(); ++i) {
    params[i / c.params() * stride + i % c.params()] =
        static_cast<T>(in.params[static_cast<size_t>(i)]);
  }
  const Guarded<T> stats(s.clients * 2 * s.out_channels);
  for (int64_t i = 0; i < stats.size() && !c.training; ++i) {
    stats[i] = static_cast<T>(in.running[static_cast<size_t>(i)]);
  }
  const std::unique_ptr<Guarded<int64_t>> counts(
      c.counts.empty() ? nullptr : new Guarded<int64_t>(s.clients));
  for (size_t g = 0; g < c.counts.size(); ++g) (*counts)[static_cast<int64_t>(g)] = c.counts[g];
  const Guarded<T> out(grad_out.size()), own_normal(c.affine ? grad_out.size() : 0);
  T* normal = c.affine ? own_normal.data() : out.data();
  const metadnas::relu_conv_bn::Args<T> args{
      s,        c.relu,        c.affine, c.training,  kEps, counts ? counts->data() : nullptr,
      x.data(), params.data(), stride,   stats.data()};
  metadnas::relu_conv_bn::kernels<T>(isa).forward({args, normal, out.data()});
  const Guarded<T> grad_x(c.need_x ? x.size() : 0);
  const Guarded<T> grad_params(c.need_params ? s.clients * c.params() : 0);
  metadnas::relu_conv_bn::kernels<T>(isa).backward({args, normal, grad_out.data(),
                                                    c.need_x ? grad_x.data() : nullptr,
                                                    c.need_params ? grad_params.data() : nullptr});
  return {out.values(), stats.values(), grad_x.values(), grad_params.values()};
}

void compare_all(const std::string& what, const Case& c, const Results& got, const Results& want,
                 double tolerance) {
  compare(what + " out", got.out, want.out, tolerance);
  compare(what + " stats", got.stats, want.stats, tolerance);
  if (c.need_x) compare(what + " grad_x", got.grad_x, want.grad_x, tolerance);
  if (c.need_params) compare(what + " grad_params", got.grad_params, want.grad_params, tolerance);
}

template <class T>
void check_type(const Case& c, const Inputs& in, const Results& want) {
  for (const Isa isa : instruction_sets()) {
    const std::string what =
        c.text() + " " + name_of(isa) + (sizeof(T) == 4 ? " float" : " double");
    task_order = Order::kForward;
    const Results first = run<T>(isa, c, in);
    compare_all(what, c, first, want, sizeof(T) == 4 ? 1e-3 : 1e-9);
    task_order = c.seed % 4 == 0 ? Order::kThreads : Order::kShuffled;
    compare_all(what + " (another order of tasks)", c, run<T>(isa, c, in), first, 0);
  }
}

}  // namespace

void test_relu_conv_bn() {
  static const std::vector<std::pair<int, int>> kSizes{{1, 1}, {1, 6}, {5, 1}, {2, 2},  {3, 3},
                                                       {5, 7}, {6, 4}, {8, 9}, {13, 17}};
  static const std::vector<int> kChannels{1, 2, 3, 4, 8, 9, 16, 17, 32, 33, 40};
  for (uint64_t seed = 0; seed < 90; ++seed) {
    Random random(seed + 5000);
    Case c;
    const auto [height, width] = random.of(kSizes);
    const int stride = 1 + random.below(2);
    const bool large = height > 10;  // several chunks a client
    c.shape = {1 + random.below(3),
               large ? 3 : 2 + random.below(4),
               height,
               width,
               large ? 1 + random.below(4) : random.of(kChannels),
               large ? stride * (1 + random.below(3)) : stride * random.of(kChannels),
               stride};
    c.relu = random.below(4) > 0;
    c.affine = random.flip();
    c.training = random.below(3) > 0;
    c.need_x = random.below(4) > 0;
    c.need_params = random.below(4) > 0;
    c.seed = seed;
    if (random.flip()) {
      for (int64_t g = 0; g < c.shape.clients; ++g) {
        c.counts.push_back(
            random.below(3) == 0 ? 0 : 2 + random.below(static_cast<int>(c.shape.images) - 1));
      }
    }
    const Inputs in(c);
    const Results want = truth(c, in);
    check_type<float>(c, in, want);
    check_type<double>(c, in, want);
  }
}

}  // namespace testing
