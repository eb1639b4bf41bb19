#include "mixed_op/plan.h"

#include <algorithm>

namespace metadnas {
namespace {

class Builder {
 public:
  Builder(int channels, int stride, bool affine, Keep keep, int first_kept)
      : affine_(affine), keep_(keep), next_kept_(first_kept) {
    plan_.channels = channels;
    plan_.stride = stride;
  }

  void add(const EdgeSpec& spec) {
    next_param_ = spec.params;
    next_slot_ = spec.norms;
    plan_.edges.emplace_back();
    for (size_t i = 0; i < spec.candidates.size(); ++i) {
      const int64_t weight = spec.weights + static_cast<int64_t>(i);
      plan_.edges.back().all_weights.push_back(weight);
      add_candidate(static_cast<Candidate>(spec.candidates[i]), weight);
    }
    plan_.parameters = std::max(plan_.parameters, next_param_);
    plan_.norm_slots = std::max(plan_.norm_slots, next_slot_);
  }

  Plan finish() {
    // The second halves refer to first_ by index, which the order below keeps.
    plan_.units = first_;
    plan_.units.insert(plan_.units.end(), second_.begin(), second_.end());
    for (Unit& unit : plan_.units) {
      if (keep_ == Keep::kAll || (keep_ == Keep::kMiddle && unit.intermediate())) {
        unit.kept = next_kept_++;
      } else {
        unit.transient = plan_.transients++;
      }
    }
    plan_.kept = next_kept_;
    return plan_;
  }

 private:
  void add_candidate(Candidate kind, int64_t weight) {
    switch (kind) {
      case Candidate::kNone:
        return;
      case Candidate::kMaxPool:
        plan_.edges.back().max_pool = {weight, pool_norm(max_partial_)};
        return;
      case Candidate::kAvgPool:
        plan_.edges.back().avg_pool = {weight, pool_norm(avg_partial_)};
        return;
      case Candidate::kSkip:
        return skip(weight);
      case Candidate::kSep3:
        return separable(3, weight);
      case Candidate::kSep5:
        return separable(5, weight);
      case Candidate::kDil3:
        first_.push_back(convolution(3, 2, plan_.stride, weight));
        return;
      case Candidate::kDil5:
        first_.push_back(convolution(5, 2, plan_.stride, weight));
        return;
    }
  }

  int64_t take(int64_t count) {
    const int64_t start = next_param_;
    next_param_ += count;
    return start;
  }

  int add_norm(int partial) {
    Norm result;
    result.slot = next_slot_++;
    result.partial = partial;
    if (affine_) result.affine = take(int64_t{2} * plan_.channels);
    plan_.norms.push_back(result);
    return static_cast<int>(plan_.norms.size()) - 1;
  }

  int unit_norm() { return add_norm(plan_.partials++); }

  int pool_norm(int& shared) {
    if (shared == kAbsent) shared = plan_.partials++;
    return add_norm(shared);
  }

  Unit convolution(int kernel, int dilation, int stride, int64_t weight) {
    Unit unit;
    unit.edge = static_cast<int>(plan_.edges.size()) - 1;
    unit.kernel = kernel;
    unit.dilation = dilation;
    unit.stride = stride;
    unit.weight = weight;
    unit.depthwise = take(static_cast<int64_t>(plan_.channels) * kernel * kernel);
    unit.pointwise = take(static_cast<int64_t>(plan_.channels) * plan_.channels);
    unit.norm = unit_norm();
    return unit;
  }

  void separable(int kernel, int64_t weight) {
    first_.push_back(convolution(kernel, 1, plan_.stride, kAbsent));
    Unit second = convolution(kernel, 1, 1, weight);
    second.source = static_cast<int>(first_.size()) - 1;
    second_.push_back(second);
  }

  void skip(int64_t weight) {
    if (plan_.stride == 1) {
      plan_.edges.back().identity = weight;
      return;
    }
    Unit unit;
    unit.edge = static_cast<int>(plan_.edges.size()) - 1;
    unit.stride = 2;
    unit.weight = weight;
    unit.pointwise = take(static_cast<int64_t>(plan_.channels) * plan_.channels);
    unit.norm = unit_norm();
    first_.push_back(unit);
  }

  bool affine_;
  Keep keep_;
  int next_kept_;
  Plan plan_;
  int64_t next_param_ = 0;
  int64_t next_slot_ = 0;
  int max_partial_ = kAbsent;
  int avg_partial_ = kAbsent;
  std::vector<Unit> first_;
  std::vector<Unit> second_;
};

}  // namespace

int Plan::first_half_units() const {
  return static_cast<int>(std::count_if(
      units.begin(), units.end(), [](const Unit& unit) { return unit.source == kFromInput; }));
}

bool Plan::pools() const {
  return std::any_of(edges.begin(), edges.end(), [](const Edge& edge) {
    return edge.max_pool.present() || edge.avg_pool.present();
  });
}

Plan make_plan(const std::vector<EdgeSpec>& edges, int channels, int stride, bool affine, Keep keep,
               int first_kept) {
  Builder builder(channels, stride, affine, keep, first_kept);
  for (const EdgeSpec& edge : edges) builder.add(edge);
  return builder.finish();
}

}  // namespace metadnas
