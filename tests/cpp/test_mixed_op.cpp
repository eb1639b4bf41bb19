// Mixed operations: every instruction set and element type against plain loops, forward and
// backward, on many shapes; the order of tasks must not show in a bit.
#include <algorithm>
#include <limits>
#include <tuple>

#include "mixed_op_case.h"
#include "suites.h"

namespace testing {
namespace {

using namespace mixed_op;

// Images of a client that do not count: whatever was there before.
void forget_uncounted(const Case& c, Results& r) {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const int64_t all = int64_t{1} * c.clients * c.images;
  for (int64_t i = 0; i < all; ++i) {
    if (i % c.images < c.count(static_cast<int>(i / c.images))) continue;
    const int64_t x_size = c.in_pixels() * c.channels, out_size = c.out_pixels() * c.channels;
    if (c.need_x) std::fill_n(r.grad_x.begin() + i * x_size, x_size, nan);
    for (int t = 0; t < c.outputs(); ++t) {
      std::fill_n(r.out.begin() + (t * all + i) * out_size, out_size, nan);
    }
  }
}

void compare_all(const std::string& what, const Case& c, const Results& got, const Results& want,
                 double tolerance) {
  compare(what + " out", got.out, want.out, tolerance);
  compare(what + " stats", got.stats, want.stats, tolerance);
  if (c.need_x) compare(what + " grad_x", got.grad_x, want.grad_x, tolerance);
  compare(what + " grad_weights", got.grad_weights, want.grad_weights, tolerance);
  if (c.need_params) compare(what + " grad_params", got.grad_params, want.grad_params, tolerance);
}

template <class T>
void check_type(const Case& c, const Inputs& in, const Results& want, double tolerance) {
  for (const Isa isa : instruction_sets()) {
    const std::string what =
        c.text() + " " + name_of(isa) + (sizeof(T) == 4 ? " float" : " double");
    task_order = Order::kForward;
    Results first = run<T>(isa, c, in, what);
    // What was there: without `prefilled` all ones, which are NaN.
    if (c.prefilled) forget_uncounted(c, first);
    compare_all(what, c, first, want, tolerance);
    task_order = c.seed % 4 == 0 ? Order::kThreads : Order::kShuffled;
    Results second = run<T>(isa, c, in, what);
    if (c.prefilled) forget_uncounted(c, second);
    compare_all(what + " (another order of tasks)", c, second, first, 0);
  }
}

void check_case(Case c, double single_tolerance = 2e-3) {
  for (; c.seed < 1000000; c.seed += 10000) {  // until no rounding error can change a relu's side
    const Inputs in(c);
    const Results want = truth<Var>(c, in, true);
    if (closest_to_zero < 1e-5) continue;
    check_type<float>(c, in, want, single_tolerance);
    check_type<double>(c, in, want, 1e-9);
    return;
  }
  fail(c.text() + ": no suitable numbers");
}

std::vector<int64_t> some_candidates(Random& random, bool factorized_possible) {
  std::vector<int64_t> all;
  for (int64_t kind = 0; kind < 8; ++kind) {
    if (kind == 3 && !factorized_possible) continue;
    if (random.below(3) > 0) all.push_back(kind);
  }
  if (all.empty()) all.push_back(random.below(3));
  for (size_t i = all.size(); i-- > 1;) {
    std::swap(all[i], all[static_cast<size_t>(random.below(static_cast<int>(i) + 1))]);
  }
  return all;
}

Case random_case(int channels, int stride, Keep keep, uint64_t seed) {
  static const std::vector<std::pair<int, int>> kSmall{{1, 1}, {1, 5}, {5, 1}, {2, 2}, {3, 3},
                                                       {4, 6}, {5, 7}, {6, 3}, {2, 9}};
  static const std::vector<std::pair<int, int>> kLarge{{7, 7},  {8, 8},  {9, 5}, {3, 17},
                                                       {2, 33}, {5, 16}, {1, 40}};
  Random random(seed + 77);
  Case c;
  c.seed = seed;
  c.channels = channels;
  c.stride = stride;
  c.keep = keep;
  std::tie(c.height, c.width) = random.of(channels < 5 && random.flip() ? kLarge : kSmall);
  c.clients = 1 + random.below(3);
  c.images = channels > 16 ? 2 + random.below(2) : 2 + random.below(5);
  const int edges = channels > 16 ? 1 : 1 + random.below(3);
  for (int e = 0; e < edges; ++e) {
    c.edges.push_back(some_candidates(random, stride == 1 || channels % 2 == 0));
    c.targets.push_back(random.below(e + 1));
  }
  // Every output below the largest has an edge.
  for (int e = 0; e < edges; ++e) c.targets[static_cast<size_t>(e)] = e == 2 ? random.below(2) : e;
  c.affine = random.flip();
  c.training = random.below(4) > 0;
  c.prefilled = random.below(4) == 0;
  c.base = random.below(3) == 0;
  c.need_x = random.below(5) > 0;
  c.need_params = random.below(5) > 0;
  c.x_gap = random.flip() ? random.below(6) : 0;
  c.out_gap = random.flip() ? random.below(6) : 0;
  if (random.flip()) {
    // At least two images: with one pixel each, a batch of one has no variance.
    for (int g = 0; g < c.clients; ++g) {
      c.counts.push_back(random.below(3) == 0 ? 0 : 2 + random.below(c.images - 1));
    }
  }
  return c;
}

void check_shapes() {
  uint64_t seed = 0;
  for (const int channels : {1, 2, 3, 4, 7, 8, 9, 16, 17, 33}) {
    for (const int stride : {1, 2}) {
      for (const Keep keep : {Keep::kAll, Keep::kMiddle, Keep::kInput}) {
        const int draws = channels > 16 ? 1 : channels > 4 ? 2 : 4;
        for (int i = 0; i < draws; ++i) check_case(random_case(channels, stride, keep, ++seed));
      }
    }
  }
}

// Every candidate on its own, at an odd and an even size.
void check_candidates_alone() {
  for (int64_t kind = 0; kind < 8; ++kind) {
    for (const int stride : {1, 2}) {
      Case c;
      c.channels = 6;
      c.stride = stride;
      c.edges = {{kind}};
      c.targets = {0};
      c.affine = kind % 2 == 0;
      c.height = kind % 2 == 0 ? 5 : 6;
      c.width = 7;
      c.seed = 500 + static_cast<uint64_t>(2 * kind + stride);
      check_case(c);
    }
  }
}

// Equal maxima, zeros in front of a relu, means far from 0.
void check_numerics() {
  for (const int stride : {1, 2}) {
    Case c;
    c.channels = 4;
    c.stride = stride;
    c.edges = {{1, 2, 3, 6, 7}, {7, 2, 1}};
    c.targets = {0, 1};
    c.height = c.width = 7;
    c.coarse = true;
    c.seed = 600;
    check_case(c);
    c.mean = 512;
    c.coarse = false;
    check_case(c, 2e-2);
  }
}

// A client's NaN, infinity or overflow stays its own, and harms nothing.
template <class T>
void check_poison(Isa isa, double poison) {
  Case c = random_case(5, 1, Keep::kMiddle, 700);
  c.clients = 2;
  c.images = 3;
  c.height = c.width = 5;
  c.counts.clear();
  c.training = c.need_x = c.need_params = true;
  c.edges = {{0, 1, 2, 3, 4, 5, 6, 7}};
  c.targets = {0};
  const std::string what = c.text() + " " + name_of(isa) + " poisoned by " + std::to_string(poison);
  Inputs in(c);
  task_order = Order::kForward;
  const Results clean = run<T>(isa, c, in, what);
  in.x[in.x.size() - 8] = poison;
  const Results dirty = run<T>(isa, c, in, what);
  auto first = [](std::vector<double> v) { return v.resize(v.size() / 2), v; };
  compare(what + " out", first(dirty.out), first(clean.out), 0);
  compare(what + " grad_x", first(dirty.grad_x), first(clean.grad_x), 0);
  compare(what + " grad_weights", first(dirty.grad_weights), first(clean.grad_weights), 0);
  compare(what + " grad_params", first(dirty.grad_params), first(clean.grad_params), 0);
  if (std::isfinite(poison)) return;
  check(std::any_of(dirty.out.begin(), dirty.out.end(), [](double v) { return std::isnan(v); }),
        what + ": no NaN in its own results");
}

// Results beyond what a cache holds are written past it: forward against plain loops, backward
// against the pass that makes them again.
void check_streaming() {
  Case c;
  c.images = 4;
  c.channels = 16;
  c.height = c.width = 68;
  c.edges = {{6}, {7}, {6, 7}, {7, 6}};
  c.targets = {0, 0, 0, 0};
  c.seed = 800;
  const Inputs in(c);
  const Results want = truth<double>(c, in, false);
  for (const Isa isa : instruction_sets()) {
    const std::string what = c.text() + " " + name_of(isa) + " float, streaming";
    task_order = Order::kThreads;
    c.keep = Keep::kAll;
    const Results kept = run<float>(isa, c, in, what);
    compare(what + " out", kept.out, want.out, 1e-4);
    c.keep = Keep::kInput;
    const Results remade = run<float>(isa, c, in, what);
    compare_all(what + ", made again", c, remade, kept, 1e-3);
  }
}

}  // namespace

void test_mixed_op() {
  check_candidates_alone();
  check_shapes();
  check_numerics();
  for (const Isa isa : instruction_sets()) {
    for (const double poison : {std::nan(""), std::numeric_limits<double>::infinity(),
                                -std::numeric_limits<double>::infinity(), 3e38}) {
      check_poison<float>(isa, poison);
      check_poison<double>(isa, poison);
    }
  }
  check_streaming();
}

}  // namespace testing
