#include "cell/graph.h"

#include <cstddef>

namespace metadnas {

CellPlan plan_cell(const CellGraph& graph, int channels, bool affine, Keep keep) {
  CellPlan cell;
  std::vector<EdgeSpec> specs;
  int64_t weights = 0;
  for (size_t e = 0; e < graph.sources.size(); ++e) {
    specs.push_back({graph.candidates[e], weights, cell.parameters, cell.norm_slots});
    const int stride = graph.stride(static_cast<int>(graph.sources[e]));
    const Plan alone = make_plan({specs.back()}, channels, stride, affine, keep);
    weights += static_cast<int64_t>(graph.candidates[e].size());
    cell.parameters = alone.parameters;
    cell.norm_slots = alone.norm_slots;
  }
  for (int state = 0; state < graph.states(); ++state) {
    std::vector<EdgeSpec> leaving;
    Fan fan;
    fan.state = state;
    for (size_t e = 0; e < specs.size(); ++e) {
      if (graph.sources[e] != state) continue;
      leaving.push_back(specs[e]);
      fan.targets.push_back(static_cast<int>(graph.targets[e]));
    }
    if (leaving.empty()) continue;
    fan.plan = make_plan(leaving, channels, graph.stride(state), affine, keep, cell.kept);
    cell.kept = fan.plan.kept;
    cell.fans.push_back(fan);
  }
  return cell;
}

}  // namespace metadnas
