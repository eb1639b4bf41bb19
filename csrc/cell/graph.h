// A cell as a graph: two inputs, nodes, and a mixed operation on every edge. No torch headers.
#pragma once

#include <cstdint>
#include <vector>

#include "mixed_op/plan.h"

namespace metadnas {

inline constexpr int kCellInputs = 2;

// Edge e goes from state `sources[e]` (the two inputs, then the nodes) to node `nodes[e]` and has
// `candidates[e]`. A reduction cell halves its inputs. Edges are in the order of their parameters.
struct CellGraph {
  int nodes = 0;
  bool reduction = false;
  std::vector<int64_t> sources;
  std::vector<int64_t> targets;
  std::vector<std::vector<int64_t>> candidates;

  int states() const { return kCellInputs + nodes; }
  int stride(int state) const { return reduction && state < kCellInputs ? 2 : 1; }
};

// The edges that leave one state, planned together: they share its relu, pools and gradient.
struct Fan {
  int state = 0;
  Plan plan;
  std::vector<int> targets;  // node of each edge of the plan
};

struct CellPlan {
  std::vector<Fan> fans;  // in the order of their states; states that nobody reads have none
  int64_t parameters = 0;
  int64_t norm_slots = 0;
  int kept = 0;
};

CellPlan plan_cell(const CellGraph& graph, int channels, bool affine, Keep keep);

}  // namespace metadnas
