// What the operators on mixed operations check and allocate alike.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "common/checks.h"
#include "common/cohort.h"
#include "mixed_op/plan.h"

namespace metadnas {

inline void check_candidates(const char* op, const std::vector<int64_t>& candidates, int64_t stride,
                             int64_t channels) {
  check(!candidates.empty(), op, ": candidates is empty");
  bool seen[kCandidates] = {};
  for (const int64_t c : candidates) {
    check(c >= 0 && c < kCandidates, op, ": candidate ", c, " is not in [0, ", kCandidates, ")");
    check(!seen[c], op, ": candidate ", c, " is named twice");
    seen[c] = true;
  }
  check(!(stride == 2 && seen[static_cast<int>(Candidate::kSkip)] && channels % 2 != 0), op,
        ": a stride-2 skip_connect (factorized reduce) needs an even number of "
        "channels, got ",
        channels);
}

inline Keep checked_keep(const char* op, int64_t keep) {
  check(keep >= 0 && keep <= static_cast<int64_t>(Keep::kInput), op, ": keep is ", keep,
        ", expected 0 (all results), 1 (middle results) or 2 (only the input)");
  return static_cast<Keep>(keep);
}

// half: whether activations may be of half precision
inline void check_activations(const char* op, const char* name, const Tensor& x, bool half) {
  check(x.dim() == 5, op, ": ", name, " has shape ", shape_text(x), ", expected (G, N, H, W, C)");
  if (!half || !is_half(x)) check_floating(op, name, x);
  for (int64_t d = 0; d < 5; ++d) {
    check(x.size(d) >= 1, op, ": ", name, " has shape ", shape_text(x),
          ", expected every size to be at least 1");
  }
}

inline void check_variance(const char* op, const CountedImages& counts, int64_t pixels,
                           const Tensor& x) {
  check(counts.fewest() * pixels > 1, op,
        ": batch statistics need more than 1 value per channel, got ", counts.fewest() * pixels,
        "; x has shape ", shape_text(x));
}

// Mixing weights, parameters and statistics beside activations x: Float where x is of half
// precision.
inline void check_wide(const char* op, const char* name, const Tensor& t, const Tensor& x) {
  check_type(op, name, t, wide_type(x), is_half(x) ? " beside x" : " as x");
  check_device(op, name, t, x);
}

// The sizes of `like`, or none where it is not wanted.
inline std::vector<int64_t> sizes_if(bool wanted, const Tensor& like) {
  std::vector<int64_t> sizes;
  for (int64_t d = 0; d < like.dim() && wanted; ++d) sizes.push_back(like.size(d));
  return wanted ? sizes : std::vector<int64_t>{0};
}

// Rows (G, P) whose elements are neighbours; the rows themselves may be apart.
inline Tensor with_dense_rows(const Tensor& t) {
  return t.size(1) <= 1 || t.stride(1) == 1 ? t : torch::stable::contiguous(t);
}

}  // namespace metadnas
