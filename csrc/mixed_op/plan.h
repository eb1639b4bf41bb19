// What a mixed operation computes: candidates resolved to units of work, batch-norm slots and
// offsets into the packed parameters. Shared by every device; no torch headers.
#pragma once

#include <cstdint>
#include <vector>

namespace metadnas {

// Index in metadnas_ext.space.PRIMITIVES.
enum class Candidate : int64_t {
  kNone,
  kMaxPool,
  kAvgPool,
  kSkip,
  kSep3,
  kSep5,
  kDil3,
  kDil5,
};
inline constexpr int64_t kCandidates = 8;

inline constexpr int kAbsent = -1;
inline constexpr int kFromInput = -1;

// Batch norm of one candidate (or of the first half of a separable one).
struct Norm {
  int64_t gamma = kAbsent;  // offset of gamma in the packed parameters; kAbsent: not affine
  int64_t beta = kAbsent;
};

// ReLU, depthwise convolution (or, for a factorized reduce, two shifted grids), pointwise product.
struct Unit {
  int kernel = 0;  // 0: factorized reduce
  int dilation = 1;
  int stride = 1;
  int source = kFromInput;      // unit whose normalised, rectified result is the input
  int norm = 0;                 // index in Plan::norms
  int candidate = kAbsent;      // candidate whose result this is; kAbsent: an intermediate one
  int64_t depthwise = kAbsent;  // offsets in the packed parameters
  int64_t pointwise = kAbsent;  // factorized reduce: conv_1, conv_2 directly behind it
  bool factorized() const { return kernel == 0; }
};

struct Pool {
  int candidate = kAbsent;
  int norm = kAbsent;
  bool present() const { return candidate != kAbsent; }
};

struct Plan {
  int channels = 0;
  int stride = 1;
  int candidates = 0;
  std::vector<Unit> units;  // every unit that reads x comes before those that read another unit
  std::vector<Norm> norms;  // in the order of the parameters
  Pool max_pool;
  Pool avg_pool;
  int identity = kAbsent;  // candidate index of a stride-1 skip
  int64_t parameters = 0;  // length of one client's packed parameters

  int first_half_units() const;  // units that read x
};

// `candidates` are distinct values of Candidate; channels >= 1; stride 1 or 2; even channels if a
// factorized reduce is among them. The caller has checked this.
Plan make_plan(const std::vector<int64_t>& candidates, int channels, int stride, bool affine);

}  // namespace metadnas
