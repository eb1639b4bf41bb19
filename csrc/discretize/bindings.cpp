#include "discretize/bindings.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <span>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

#include "discretize/solver.h"

namespace py = pybind11;

namespace metadnas {
namespace {

using Table = py::array_t<double, py::array::c_style | py::array::forcecast>;
using Result = std::tuple<double, double, std::vector<int>, std::vector<int>>;

Result discretize_solve(const Table& scores, const Table& costs, int nodes, int forbidden,
                        double fixed, double budget, double gap, int capped, int cap, int parts) {
  for (const Table* table : {&scores, &costs}) {
    if (table->ndim() != 3 || table->shape(0) != scores.shape(0) ||
        table->shape(1) != scores.shape(1) || table->shape(2) != scores.shape(2)) {
      throw std::invalid_argument(
          "discretize_solve: scores and costs must be equal in shape [types, edges, candidates]");
    }
  }
  discretize::Problem problem;
  problem.scores = std::span(scores.data(), static_cast<std::size_t>(scores.size()));
  problem.costs = std::span(costs.data(), static_cast<std::size_t>(costs.size()));
  problem.types = static_cast<int>(scores.shape(0));
  problem.nodes = nodes;
  problem.candidates = static_cast<int>(scores.shape(2));
  problem.forbidden = forbidden;
  problem.fixed = fixed;
  problem.budget = budget;
  problem.gap = gap;
  problem.capped = capped;
  problem.cap = cap;
  problem.parts = parts;
  py::gil_scoped_release release;  // clients may be discretised in threads
  discretize::Solution solution = discretize::solve(problem);
  return {solution.score, solution.cost, std::move(solution.edges), std::move(solution.candidates)};
}

}  // namespace

void bind_discretize(py::module_& m) {
  m.def("discretize_solve", &discretize_solve, py::arg("scores"), py::arg("costs"),
        py::arg("nodes"), py::arg("forbidden"), py::arg("fixed"), py::arg("budget"),
        py::arg("gap") = 0.0, py::arg("capped") = -1, py::arg("cap") = 0, py::arg("parts") = 1,
        "Largest summed score with fixed + summed cost <= budget and, of each cell of `parts` "
        "types, at most `cap` times the candidate `capped`: (score, cost, edges, candidates), the "
        "latter two [types * nodes * 2]. ValueError on bad input or infeasible.");
}

}  // namespace metadnas
