#include "discretize/solver.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

namespace metadnas::discretize {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
// Far above the rounding error of sums of some hundred terms, far below any difference that counts.
constexpr double kRounding = 1e-12;
// About 170 MB of states; ordinary problems keep fewer than a thousand.
constexpr std::size_t kMaxStates = std::size_t{1} << 22;

// One way to wire a node. Operations are numbered edge * candidates + candidate.
struct Choice {
  double cost;
  double score;
  int first;
  int second;
  int used;  // of these two, how many are the capped candidate
};

// Choices for the nodes up to some stage: the last node's, and the state before it.
struct State {
  double cost;
  double score;
  int parent;       // index in the previous stage
  int choice;       // index in the node's front
  int parent_rank;  // order of the choices behind it, for ties
  int choice_rank;
  int used;  // the capped candidate in the cell's nodes so far
};

struct Point {
  double cost;
  double score;
};

// Keeps, of entries sorted by use of the capped candidate and rising cost, those whose score
// exceeds by `step` that of every cheaper one with the same use: what else is left of the cap would
// decide.
template <class T>
void keep_front(std::vector<T>& entries, double step) {
  double best = -kInfinity;
  int level = -1;
  std::erase_if(entries, [&](const T& entry) {
    if (entry.used != level) {
      best = -kInfinity;
      level = entry.used;
    }
    if (!(entry.score > best + step)) return true;
    best = entry.score;
    return false;
  });
}

// The undominated ways to wire a node within the cap; `levels`: for each use of it separately.
std::vector<Choice> node_front(const Problem& problem, int type, int node, double step,
                               bool levels) {
  const int edges = problem.nodes * (problem.nodes + 3) / 2;
  const std::size_t offset = static_cast<std::size_t>(type) * edges * problem.candidates;
  const auto scores = problem.scores.subspan(offset);
  const auto costs = problem.costs.subspan(offset);
  const int first_edge = node * (node + 3) / 2;
  std::vector<Choice> front;
  for (int a = first_edge; a < first_edge + node + 2; ++a) {
    for (int b = a + 1; b < first_edge + node + 2; ++b) {
      for (int i = 0; i < problem.candidates; ++i) {
        for (int j = 0; j < problem.candidates; ++j) {
          if (i == problem.forbidden || j == problem.forbidden) continue;
          const int used = (i == problem.capped) + (j == problem.capped);
          if (used > problem.cap) continue;
          const int first = a * problem.candidates + i;
          const int second = b * problem.candidates + j;
          front.push_back({costs[first] + costs[second], scores[first] + scores[second], first,
                           second, levels ? used : 0});
        }
      }
    }
  }
  std::sort(front.begin(), front.end(), [](const Choice& x, const Choice& y) {
    return std::tuple(x.used, x.cost, -x.score, x.first, x.second) <
           std::tuple(y.used, y.cost, -y.score, y.first, y.second);
  });
  keep_front(front, step);
  return front;
}

// One behind the last choice that uses the capped candidate at most `used` times.
std::size_t level_end(const std::vector<Choice>& front, int used) {
  const auto end = std::upper_bound(front.begin(), front.end(), used,
                                    [](int value, const Choice& c) { return value < c.used; });
  return static_cast<std::size_t>(end - front.begin());
}

// Position of every choice in lexicographic order.
std::vector<int> choice_ranks(const std::vector<Choice>& front) {
  std::vector<int> order(front.size()), ranks(front.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int x, int y) {
    return std::tuple(front[x].first, front[x].second) <
           std::tuple(front[y].first, front[y].second);
  });
  for (std::size_t i = 0; i < order.size(); ++i) ranks[order[i]] = static_cast<int>(i);
  return ranks;
}

std::vector<int> state_ranks(const std::vector<State>& states) {
  std::vector<int> order(states.size()), ranks(states.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int x, int y) {
    return std::tuple(states[x].parent_rank, states[x].choice_rank) <
           std::tuple(states[y].parent_rank, states[y].choice_rank);
  });
  for (std::size_t i = 0; i < order.size(); ++i) ranks[order[i]] = static_cast<int>(i);
  return ranks;
}

// What the remaining nodes can add for a given rest of the budget: the concave hull of their summed
// front. Every corner is a choice, so it bounds from below; between corners it bounds from above.
// Without corners there is no choice.
class Completion {
 public:
  Completion() : corners_{{0.0, 0.0}} {}

  // Adds one more node: the Minkowski sum of two hulls is their segments by falling slope.
  void add(std::span<const Choice> front) {
    const std::vector<Point> other = hull(front);
    if (corners_.empty() || other.empty()) return corners_.clear();
    std::vector<Point> sum{{corners_[0].cost + other[0].cost, corners_[0].score + other[0].score}};
    std::size_t i = 1, j = 1;
    while (i < corners_.size() || j < other.size()) {
      const bool mine =
          j == other.size() || (i < corners_.size() && slope(corners_, i) >= slope(other, j));
      const std::vector<Point>& from = mine ? corners_ : other;
      const std::size_t k = mine ? i++ : j++;
      sum.push_back({sum.back().cost + (from[k].cost - from[k - 1].cost),
                     sum.back().score + (from[k].score - from[k - 1].score)});
    }
    corners_ = std::move(sum);
  }

  // Score reachable for certain with `rest` to spend; -inf when even the cheapest is too dear.
  double lower(double rest) const {
    const std::size_t k = corners_within(rest);
    return k == 0 ? -kInfinity : corners_[k - 1].score;
  }

  // Score that cannot be exceeded with `rest` to spend.
  double upper(double rest) const {
    const std::size_t k = corners_within(rest);
    if (k == 0) return -kInfinity;
    const Point& left = corners_[k - 1];
    if (k == corners_.size()) return left.score;
    const Point& right = corners_[k];
    const double share = std::min(1.0, (rest - left.cost) / (right.cost - left.cost));
    return left.score + share * (right.score - left.score);
  }

 private:
  static double slope(const std::vector<Point>& points, std::size_t i) {
    return (points[i].score - points[i - 1].score) / (points[i].cost - points[i - 1].cost);
  }

  static std::vector<Point> hull(std::span<const Choice> front) {
    std::vector<Point> points;
    for (const Choice& choice : front) {
      points.push_back({choice.cost, choice.score});
      while (points.size() > 2 &&
             slope(points, points.size() - 1) > slope(points, points.size() - 2)) {
        points.erase(points.end() - 2);
      }
    }
    return points;
  }

  std::size_t corners_within(double rest) const {
    return std::upper_bound(corners_.begin(), corners_.end(), rest,
                            [](double value, const Point& p) { return value < p.cost; }) -
           corners_.begin();
  }

  std::vector<Point> corners_;  // rising in cost and score, falling in slope
};

void check(const Problem& problem) {
  const auto fail = [](const std::string& what) {
    throw std::invalid_argument("discretize_solve: " + what);
  };
  if (problem.types < 1 || problem.nodes < 1) fail("needs at least one cell type and one node");
  if (problem.parts < 1 || problem.types % problem.parts != 0) {
    fail("the cell types must be whole cells of " + std::to_string(problem.parts) + " parts");
  }
  const int choosable =
      problem.candidates - (problem.forbidden >= 0 && problem.forbidden < problem.candidates);
  if (choosable < 1) fail("no candidate may be chosen");
  const std::size_t edges = static_cast<std::size_t>(problem.nodes) * (problem.nodes + 3) / 2;
  const std::size_t size = problem.types * edges * problem.candidates;
  if (problem.scores.size() != size || problem.costs.size() != size) {
    fail("scores and costs must have " + std::to_string(size) + " entries, got " +
         std::to_string(problem.scores.size()) + " and " + std::to_string(problem.costs.size()));
  }
  const auto finite = [](double value) { return std::isfinite(value); };
  if (!std::all_of(problem.scores.begin(), problem.scores.end(), finite)) {
    fail("a score is not finite");
  }
  if (!std::all_of(problem.costs.begin(), problem.costs.end(), finite)) {
    fail("a cost is not finite");
  }
  if (!std::isfinite(problem.fixed)) fail("the fixed cost is not finite");
  if (std::isnan(problem.budget)) fail("the budget is not a number");
  if (!(problem.gap >= 0.0)) fail("the gap must be at least 0");
  if (problem.cap < 0) fail("the cap must be at least 0");
}

// Merges the nodes one by one, keeping only partial choices that no other dominates and that can
// still lead to the optimum.
class Solver {
 public:
  explicit Solver(const Problem& problem) : problem_(problem) {
    const int total = problem.types * problem.nodes;
    const double step = problem.gap / (2 * total);  // one loss per node front and per merge
    double magnitude = std::abs(problem.fixed), score_magnitude = 0.0;
    std::vector<std::vector<Choice>> whole;  // fronts of all levels together
    for (int n = 0; n < total; ++n) {
      const int type = n / problem.nodes, node = n % problem.nodes;
      fronts_.push_back(node_front(problem, type, node, step, true));
      whole.push_back(node_front(problem, type, node, step, false));
      if (whole.back().empty()) fail_infeasible();
      cheapest_.push_back(whole.back().front().cost);
      double cost = 0.0, score = 0.0;
      for (const Choice& choice : fronts_.back()) {
        cost = std::max(cost, std::abs(choice.cost));
        score = std::max(score, std::abs(choice.score));
      }
      magnitude += cost;
      score_magnitude += score;
    }
    step_ = step;
    cost_slack_ = kRounding * magnitude;
    score_slack_ = kRounding * score_magnitude;
    if (!std::isfinite(4 * magnitude) || !std::isfinite(4 * score_magnitude)) {  // room to add up
      throw std::invalid_argument("discretize_solve: the summed costs or scores overflow");
    }
    possible_.resize(total + 1);
    certain_.resize(total + 1);
    for (int n = total; n-- > 0;) {
      possible_[n] = possible_[n + 1];
      possible_[n].add(whole[n]);
      certain_[n] = certain_[n + 1];
      certain_[n].add(std::span(fronts_[n]).first(level_end(fronts_[n], 0)));
    }
  }

  Solution run() {
    std::vector<std::vector<State>> stages{{State{problem_.fixed, 0.0, 0, 0, 0, 0, 0}}};
    for (std::size_t n = 0; n < fronts_.size(); ++n) {
      stages.push_back(merge(stages.back(), n));
      if (stages.back().empty()) fail_infeasible();
    }
    return read_back(stages);
  }

 private:
  [[noreturn]] static void fail_infeasible() {
    throw std::invalid_argument("discretize_solve: no architecture fits the budget and the cap");
  }

  // Folds the cheapest rest exactly as a complete choice would be, so no tolerance is needed. Under
  // a cap the rest may be dearer: then later merges find out.
  bool feasible(double cost, std::size_t next) const {
    for (std::size_t n = next; n < cheapest_.size(); ++n) cost += cheapest_[n];
    return cost <= problem_.budget;
  }

  // Best score that a completion of `state` can have; raises what is known to be reachable.
  double bound(const State& state, std::size_t next) {
    const double rest = problem_.budget - state.cost;
    const double certain = certain_[next].lower(rest - cost_slack_);
    reachable_ = std::max(reachable_, state.score + certain - score_slack_);
    return state.score + possible_[next].upper(rest + cost_slack_) + score_slack_ + problem_.gap;
  }

  std::vector<State> merge(const std::vector<State>& previous, std::size_t n) {
    const std::vector<Choice>& front = fronts_[n];
    const std::vector<int> parents = state_ranks(previous), choices = choice_ranks(front);
    const std::size_t cell = static_cast<std::size_t>(problem_.nodes) * problem_.parts;
    const bool last_of_cell = (n + 1) % cell == 0;  // the cap is on each cell
    std::vector<State> states;
    std::vector<double> bounds;
    for (std::size_t i = 0; i < previous.size(); ++i) {
      for (std::size_t j = 0; j < front.size(); ++j) {
        const int used = previous[i].used + front[j].used;
        if (used > problem_.cap) break;  // the front rises in use
        const State state{previous[i].cost + front[j].cost,
                          previous[i].score + front[j].score,
                          static_cast<int>(i),
                          static_cast<int>(j),
                          parents[i],
                          choices[j],
                          last_of_cell ? 0 : used};
        if (!feasible(state.cost, n + 1)) {  // nor is what is dearer and uses as much of the cap
          j = level_end(front, front[j].used) - 1;
          continue;
        }
        const double best = bound(state, n + 1);
        if (best < reachable_) continue;
        if (states.size() == kMaxStates) {
          throw std::runtime_error(
              "discretize_solve: too many undominated architectures; costs and scores are "
              "proportional, give a gap");
        }
        states.push_back(state);
        bounds.push_back(best);
      }
    }
    std::size_t kept = 0;  // once more, with the final `reachable_`
    for (std::size_t i = 0; i < states.size(); ++i) {
      if (bounds[i] >= reachable_) states[kept++] = states[i];
    }
    states.resize(kept);
    std::sort(states.begin(), states.end(), [](const State& x, const State& y) {
      return std::tuple(x.used, x.cost, -x.score, x.parent_rank, x.choice_rank) <
             std::tuple(y.used, y.cost, -y.score, y.parent_rank, y.choice_rank);
    });
    keep_front(states, step_);
    return states;
  }

  Solution read_back(const std::vector<std::vector<State>>& stages) const {
    const State& best = stages.back().back();  // a front rises in score
    Solution solution{best.score, best.cost, std::vector<int>(2 * fronts_.size()),
                      std::vector<int>(2 * fronts_.size())};
    const State* state = &best;
    for (std::size_t n = fronts_.size(); n-- > 0;) {
      const Choice& choice = fronts_[n][state->choice];
      const int operations[] = {choice.first, choice.second};
      for (int k = 0; k < 2; ++k) {
        solution.edges[2 * n + k] = operations[k] / problem_.candidates;
        solution.candidates[2 * n + k] = operations[k] % problem_.candidates;
      }
      state = &stages[n][state->parent];
    }
    return solution;
  }

  const Problem& problem_;
  std::vector<std::vector<Choice>> fronts_;  // per type and node, by use of the capped candidate
  std::vector<double> cheapest_;             // per type and node
  // [n]: what nodes n, n + 1, ... can add, at most, and for certain: without the capped candidate.
  std::vector<Completion> possible_, certain_;
  double step_ = 0.0;
  double cost_slack_ = 0.0;
  double score_slack_ = 0.0;
  double reachable_ = -kInfinity;
};

}  // namespace

Solution solve(const Problem& problem) {
  check(problem);
  return Solver(problem).run();
}

}  // namespace metadnas::discretize
