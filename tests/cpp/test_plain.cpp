// What has no vectors: the plans of mixed operations and cells, and the discretisation solver
// against brute force.
#include <algorithm>
#include <limits>
#include <stdexcept>

#include "cell/graph.h"
#include "discretize/solver.h"
#include "harness.h"
#include "suites.h"
#include "truth.h"

namespace testing {
namespace {

using metadnas::Keep;
using metadnas::discretize::Problem;
using metadnas::discretize::Solution;

// Marks [begin, begin + size), each at most once.
void claim(std::vector<int>& used, int64_t begin, int64_t size, const std::string& what) {
  for (int64_t i = begin; i < begin + size; ++i) {
    if (i < 0 || i >= static_cast<int64_t>(used.size())) return fail(what + ": beyond the row");
    ++used[static_cast<size_t>(i)];
  }
}

void check_claims(const std::vector<int>& used, const std::string& what) {
  check(std::all_of(used.begin(), used.end(), [](int times) { return times == 1; }),
        what + ": not used exactly once");
}

// A cell's edges share out parameters, weights, batch norms and kept results among themselves.
void check_cell(Random& random) {
  const int channels = 2 * (1 + random.below(9));
  const bool affine = random.flip();
  metadnas::CellGraph graph;
  graph.nodes = 1 + random.below(4);
  graph.reduction = random.flip();
  int64_t parameters = 0, norms = 0, weights = 0;
  for (int node = 0; node < graph.nodes; ++node) {
    for (int k = 0; k < 2; ++k) {
      graph.sources.push_back(random.below(metadnas::kCellInputs + node));
      graph.targets.push_back(node);
      graph.candidates.emplace_back();
      const int stride = graph.stride(static_cast<int>(graph.sources.back()));
      for (int64_t kind = 0; kind < metadnas::kCandidates; ++kind) {
        if (random.flip()) continue;
        graph.candidates.back().push_back(kind);
        parameters += candidate_params(kind, channels, stride, affine);
        norms += candidate_norms(kind, stride);
        ++weights;
      }
    }
  }
  for (const Keep keep : {Keep::kAll, Keep::kMiddle, Keep::kInput}) {
    const metadnas::CellPlan cell = metadnas::plan_cell(graph, channels, affine, keep);
    check(cell.parameters == parameters && cell.norm_slots == norms, "plan_cell: sizes of rows");
    std::vector<int> params(static_cast<size_t>(parameters)), slots(static_cast<size_t>(norms));
    std::vector<int> mixing(static_cast<size_t>(weights)), kept(static_cast<size_t>(cell.kept));
    for (const metadnas::Fan& fan : cell.fans) {
      for (const metadnas::Norm& norm : fan.plan.norms) {
        claim(slots, norm.slot, 1, "plan_cell norms");
        if (!affine) continue;
        claim(params, norm.affine, 2 * channels, "plan_cell gamma, beta");
      }
      for (const metadnas::Edge& edge : fan.plan.edges) {
        for (const int64_t weight : edge.all_weights) claim(mixing, weight, 1, "plan_cell weights");
      }
      for (const metadnas::Unit& unit : fan.plan.units) {
        if (unit.kept != metadnas::kAbsent) claim(kept, unit.kept, 1, "plan_cell kept");
        claim(params, unit.pointwise, int64_t{channels} * channels, "plan_cell pointwise");
        if (unit.factorized()) continue;
        claim(params, unit.depthwise, int64_t{channels} * unit.kernel * unit.kernel,
              "plan_cell depthwise");
      }
    }
    check_claims(params, "plan_cell parameters");
    check_claims(slots, "plan_cell batch norms");
    check_claims(mixing, "plan_cell mixing weights");
    check_claims(kept, "plan_cell kept results");
  }
}

// All ways to wire one node after the other, in lexicographic order.
class BruteForce {
 public:
  explicit BruteForce(const Problem& problem) : problem_(problem) { walk(0, 0.0, problem.fixed); }

  bool found = false;
  Solution best;

 private:
  size_t at(int type, int edge, int candidate) const {
    const int edges = problem_.nodes * (problem_.nodes + 3) / 2;
    return (static_cast<size_t>(type) * edges + edge) * problem_.candidates + candidate;
  }
  void walk(int n, double score, double cost) {
    if (n == problem_.types * problem_.nodes) {
      if (cost > problem_.budget || !within_cap()) return;
      if (found && (score < best.score || (score == best.score && cost >= best.cost))) return;
      found = true;
      best = {score, cost, edges_, candidates_};
      return;
    }
    const int type = n / problem_.nodes, node = n % problem_.nodes;
    const int first = node * (node + 3) / 2, last = first + node + 2;
    for (int a = first; a < last; ++a)
      for (int i = 0; i < problem_.candidates; ++i)
        for (int b = a + 1; b < last; ++b)
          for (int j = 0; j < problem_.candidates; ++j) {
            if (i == problem_.forbidden || j == problem_.forbidden) continue;
            edges_.insert(edges_.end(), {a, b});
            candidates_.insert(candidates_.end(), {i, j});
            walk(n + 1, score + (problem_.scores[at(type, a, i)] + problem_.scores[at(type, b, j)]),
                 cost + (problem_.costs[at(type, a, i)] + problem_.costs[at(type, b, j)]));
            edges_.resize(edges_.size() - 2);
            candidates_.resize(candidates_.size() - 2);
          }
  }

  bool within_cap() const {
    const int size = problem_.parts * problem_.nodes * 2;
    for (int cell = 0; cell < problem_.types / problem_.parts; ++cell) {
      const auto first = candidates_.begin() + cell * size;
      if (std::count(first, first + size, problem_.capped) > problem_.cap) return false;
    }
    return true;
  }

  const Problem& problem_;
  std::vector<int> edges_, candidates_;
};

void check_problem(Random& random, int round) {
  static const int kSizes[][3] = {{1, 1, 1}, {1, 1, 4}, {1, 2, 3}, {2, 1, 3},
                                  {2, 2, 2}, {1, 3, 2}, {3, 1, 3}};
  const auto& [types, nodes, candidates] = kSizes[round % 7];
  const size_t size = static_cast<size_t>(types) * nodes * (nodes + 3) / 2 * candidates;
  std::vector<double> scores = random.numbers(static_cast<int64_t>(size));
  std::vector<double> costs = random.numbers(static_cast<int64_t>(size));
  if (random.flip()) {  // many ties
    for (double& v : scores) v = std::round(v);
    for (double& v : costs) v = std::round(v);
  }
  Problem problem;
  problem.scores = scores;
  problem.costs = costs;
  problem.types = types;
  problem.nodes = nodes;
  problem.candidates = candidates;
  problem.forbidden = candidates > 1 && random.flip() ? random.below(candidates) : -1;
  if (random.flip()) {
    problem.capped = random.below(candidates);
    problem.parts = random.flip() ? types : 1;
    problem.cap = random.below(2 * nodes * problem.parts + 1);
  }
  problem.fixed = random.number();
  problem.budget = random.below(5) == 0 ? std::numeric_limits<double>::infinity()
                                        : problem.fixed + 2 * random.number();
  const std::string what = "discretize, round " + std::to_string(round);
  const BruteForce truth(problem);
  try {
    const Solution got = metadnas::discretize::solve(problem);
    check(truth.found, what + ": a solution beyond the budget");
    check(got.score == truth.best.score && got.cost == truth.best.cost, what + ": not the optimum");
    check(got.edges == truth.best.edges && got.candidates == truth.best.candidates,
          what + ": another choice among equals");
    problem.gap = 0.25;
    const Solution near = metadnas::discretize::solve(problem);
    check(near.score >= truth.best.score - 0.25 && near.cost <= problem.budget,
          what + ": beyond the gap");
  } catch (const std::invalid_argument&) {
    check(!truth.found, what + ": no solution found");
  }
}

void check_malformed() {
  const double nan = std::nan(""), infinity = std::numeric_limits<double>::infinity();
  const std::vector<double> good(4, 1.0);
  auto refused = [&](auto&& change) {
    std::vector<double> scores = good, costs = good;
    Problem p;
    p.types = p.nodes = 1;
    p.candidates = 2;
    p.budget = 10;
    change(p, scores, costs);
    p.scores = scores;
    p.costs = costs;
    try {
      metadnas::discretize::solve(p);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  using Numbers = std::vector<double>;
  check(!refused([](Problem&, Numbers&, Numbers&) {}), "discretize: refuses a good problem");
  check(refused([](Problem& p, Numbers&, Numbers&) { p.types = 0; }), "discretize: no types");
  check(refused([](Problem& p, Numbers&, Numbers&) { p.nodes = -1; }), "discretize: nodes");
  check(refused([](Problem& p, Numbers&, Numbers&) { p.candidates = 0; }), "discretize: none");
  check(refused([&](Problem& p, Numbers&, Numbers&) { p.budget = nan; }), "discretize: budget");
  check(refused([&](Problem& p, Numbers&, Numbers&) { p.budget = -1; }), "discretize: too little");
  check(refused([&](Problem& p, Numbers&, Numbers&) { p.gap = nan; }), "discretize: gap");
  check(refused([](Problem& p, Numbers&, Numbers&) { p.cap = -1; }), "discretize: cap");
  check(refused([](Problem& p, Numbers&, Numbers&) { p.parts = 0; }), "discretize: no parts");
  check(refused([](Problem& p, Numbers&, Numbers&) { p.parts = 2; }), "discretize: parts");
  check(refused([&](Problem& p, Numbers&, Numbers&) { p.fixed = infinity; }), "discretize: fixed");
  check(refused([&](Problem&, Numbers& s, Numbers&) { s[1] = nan; }), "discretize: score");
  check(refused([&](Problem&, Numbers&, Numbers& c) { c[3] = infinity; }), "discretize: cost");
  check(refused([&](Problem&, Numbers& s, Numbers&) { s.pop_back(); }), "discretize: size");
  check(refused([&](Problem&, Numbers&, Numbers& c) { c.assign(4, 1e308); }),
        "discretize: overflow");
}

}  // namespace

void test_plan() {
  Random random(1);
  for (int i = 0; i < 200; ++i) check_cell(random);
}

void test_discretize() {
  Random random(2);
  for (int round = 0; round < 240; ++round) check_problem(random, round);
  check_malformed();
}

}  // namespace testing
