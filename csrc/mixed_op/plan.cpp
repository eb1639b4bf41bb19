#include "mixed_op/plan.h"

#include <algorithm>

namespace metadnas {
namespace {

class Builder {
 public:
  Builder(int channels, int stride, bool affine) : affine_(affine) {
    plan_.channels = channels;
    plan_.stride = stride;
  }

  void add(Candidate kind, int index) {
    switch (kind) {
      case Candidate::kNone:
        return;
      case Candidate::kMaxPool:
        plan_.max_pool = {index, norm()};
        return;
      case Candidate::kAvgPool:
        plan_.avg_pool = {index, norm()};
        return;
      case Candidate::kSkip:
        return skip(index);
      case Candidate::kSep3:
        return separable(3, index);
      case Candidate::kSep5:
        return separable(5, index);
      case Candidate::kDil3:
        first_.push_back(convolution(3, 2, plan_.stride, index));
        return;
      case Candidate::kDil5:
        first_.push_back(convolution(5, 2, plan_.stride, index));
        return;
    }
  }

  Plan finish(int candidates) {
    plan_.candidates = candidates;
    plan_.parameters = next_;
    // The second halves refer to first_ by index, which the order below keeps.
    plan_.units = first_;
    plan_.units.insert(plan_.units.end(), second_.begin(), second_.end());
    return plan_;
  }

 private:
  int64_t take(int64_t count) {
    const int64_t start = next_;
    next_ += count;
    return start;
  }

  int norm() {
    Norm result;
    if (affine_) {
      result.gamma = take(plan_.channels);
      result.beta = take(plan_.channels);
    }
    plan_.norms.push_back(result);
    return static_cast<int>(plan_.norms.size()) - 1;
  }

  Unit convolution(int kernel, int dilation, int stride, int candidate) {
    Unit unit;
    unit.kernel = kernel;
    unit.dilation = dilation;
    unit.stride = stride;
    unit.candidate = candidate;
    unit.depthwise = take(static_cast<int64_t>(plan_.channels) * kernel * kernel);
    unit.pointwise = take(static_cast<int64_t>(plan_.channels) * plan_.channels);
    unit.norm = norm();
    return unit;
  }

  void separable(int kernel, int index) {
    first_.push_back(convolution(kernel, 1, plan_.stride, kAbsent));
    Unit second = convolution(kernel, 1, 1, index);
    second.source = static_cast<int>(first_.size()) - 1;
    second_.push_back(second);
  }

  void skip(int index) {
    if (plan_.stride == 1) {
      plan_.identity = index;
      return;
    }
    Unit unit;
    unit.stride = 2;
    unit.candidate = index;
    unit.pointwise = take(static_cast<int64_t>(plan_.channels) * plan_.channels);
    unit.norm = norm();
    first_.push_back(unit);
  }

  bool affine_;
  Plan plan_;
  int64_t next_ = 0;
  std::vector<Unit> first_;
  std::vector<Unit> second_;
};

}  // namespace

int Plan::first_half_units() const {
  return static_cast<int>(std::count_if(
      units.begin(), units.end(), [](const Unit& unit) { return unit.source == kFromInput; }));
}

Plan make_plan(const std::vector<int64_t>& candidates, int channels, int stride, bool affine) {
  Builder builder(channels, stride, affine);
  for (size_t i = 0; i < candidates.size(); ++i) {
    builder.add(static_cast<Candidate>(candidates[i]), static_cast<int>(i));
  }
  return builder.finish(static_cast<int>(candidates.size()));
}

}  // namespace metadnas
