// Exact discretisation of architecture parameters under a cost budget.
#pragma once

#include <span>
#include <vector>

namespace metadnas::discretize {

// Chooses for every node of every cell type two incoming edges and one candidate on each, so that
// the summed score is the largest with fixed + summed cost <= budget.
//
// A sum is folded node by node, types in order: ((start + node 0) + node 1) + ..., a node being
// (first edge + second edge). Rounding is monotone, so a caller that folds alike gets equal
// doubles.
struct Problem {
  std::span<const double> scores;  // [types, edges, candidates], finite
  std::span<const double> costs;   // [types, edges, candidates], finite
  int types = 0;
  int nodes = 0;       // node i has 2 + i incoming edges, numbered node by node
  int candidates = 0;  // per edge
  int forbidden = -1;  // candidate that may not be chosen; -1: none
  int parts = 1;       // types in a row that make one cell
  int capped = -1;     // candidate that each cell may have at most `cap` of; -1: none
  int cap = 0;
  double fixed = 0.0;  // cost that every architecture has
  double budget = 0.0;
  double gap = 0.0;  // the score may miss the optimum by this much; 0: exact
};

struct Solution {
  double score = 0.0;
  double cost = 0.0;            // with the fixed part
  std::vector<int> edges;       // [types, nodes, 2], ascending within a node
  std::vector<int> candidates;  // [types, nodes, 2]
};

// Ties: the higher score, then the lower cost, then the lexicographically smallest sequence of
// (edge, candidate). Throws std::invalid_argument on malformed input and when no choice fits the
// budget and the cap, std::runtime_error when too many partial choices remain (costs proportional
// to scores).
Solution solve(const Problem& problem);

}  // namespace metadnas::discretize
