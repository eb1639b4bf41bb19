// Adam, SGD and the sums of squares of rows, against a loop in double precision.
#include <limits>

#include "guarded.h"
#include "harness.h"
#include "row_optimizers/cpu/kernels.h"
#include "suites.h"

namespace testing {
namespace {

using metadnas::Isa;
using metadnas::row_optimizers::AdamRow;
using metadnas::row_optimizers::kernels;
using metadnas::row_optimizers::SgdRow;

// Two rows more than take the step: those stay as they are.
template <class T>
void check_steps(Isa isa, int64_t count, int64_t width) {
  const std::string what = "row_optimizers " + std::to_string(count) + " x " +
                           std::to_string(width) + " " + name_of(isa) +
                           (sizeof(T) == 4 ? " float" : " double");
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;
  const double decay = 0.01, beta1 = 0.9, beta2 = 0.99, eps = 1e-3, momentum = 0.8;
  Random random(static_cast<uint64_t>(count * 100000 + width));
  const int64_t all = (count + 2) * width;
  const auto start = random.numbers(all), grad = random.numbers(count * width);
  const auto first = random.numbers(all);
  auto second = random.numbers(all);
  for (double& v : second) v *= v;
  const std::vector<double> scales = random.numbers(count), rates = random.numbers(count);
  std::vector<AdamRow> adam_rows;
  std::vector<SgdRow> sgd_rows;
  for (size_t r = 0; r < scales.size(); ++r) {
    adam_rows.push_back({scales[r], rates[r], 1.25});
    sgd_rows.push_back({scales[r], rates[r]});
  }

  auto parameters = start, mean = first, square = second, moved = start, velocity = first;
  std::vector<double> sums(static_cast<size_t>(count));
  for (size_t i = 0; i < grad.size(); ++i) {
    const size_t r = i / static_cast<size_t>(width);
    const double g = scales[r] * grad[i] + decay * start[i];
    mean[i] += (1 - beta1) * (g - mean[i]);
    square[i] = beta2 * square[i] + (1 - beta2) * g * g;
    parameters[i] -= rates[r] * mean[i] / (std::sqrt(square[i]) * 1.25 + eps);
    velocity[i] = momentum * velocity[i] + g;
    moved[i] -= rates[r] * velocity[i];
    sums[r] += grad[i] * grad[i];
  }

  for (const Order order : {Order::kForward, Order::kShuffled, Order::kThreads}) {
    task_order = order;
    const Guarded<T> given(grad);
    {
      const Guarded<T> p(start), m(first), s(second);
      kernels<T>(isa).adam({{count, width, p.data(), given.data(), decay},
                            m.data(),
                            s.data(),
                            beta1,
                            beta2,
                            eps,
                            adam_rows.data()});
      compare(what + " adam parameters", p.values(), parameters, tolerance);
      compare(what + " adam mean", m.values(), mean, tolerance);
      compare(what + " adam square", s.values(), square, tolerance);
    }
    {
      const Guarded<T> p(start), v(first);
      kernels<T>(isa).sgd(
          {{count, width, p.data(), given.data(), decay}, v.data(), momentum, sgd_rows.data()});
      compare(what + " sgd parameters", p.values(), moved, tolerance);
      compare(what + " sgd velocity", v.values(), velocity, tolerance);
    }
    const Guarded<double> squares(count);
    kernels<T>(isa).square_sums(given.data(), count, width, squares.data());
    compare(what + " square_sums", squares.values(), sums, 1e-12);
  }
}

// One element's NaN or infinity is its own affair.
template <class T>
void check_poison(Isa isa, double poison) {
  const std::string what = "row_optimizers " + name_of(isa) + " poisoned";
  std::vector<double> grad(37, 0.5);
  grad[20] = poison;
  const Guarded<T> p(std::vector<double>(37, 1.0)), v(std::vector<double>(37, 0.0)), g(grad);
  const std::vector<SgdRow> rows{{1, 0.5}};
  kernels<T>(isa).sgd({{1, 37, p.data(), g.data(), 0}, v.data(), 0.5, rows.data()});
  std::vector<double> want(37, 0.75);
  want[20] = 1 - 0.5 * poison;
  compare(what, p.values(), want, 0);
}

}  // namespace

void test_row_optimizers() {
  for (const Isa isa : instruction_sets()) {
    for (const int64_t width : {0, 1, 3, 7, 8, 15, 16, 17, 31, 33, 100, 16384, 16389, 32771}) {
      for (const int64_t count : {0, 1, 3}) {
        check_steps<float>(isa, count, width);
        check_steps<double>(isa, count, width);
      }
    }
    for (const double poison : {std::nan(""), std::numeric_limits<double>::infinity()}) {
      check_poison<float>(isa, poison);
      check_poison<double>(isa, poison);
    }
  }
}

}  // namespace testing
