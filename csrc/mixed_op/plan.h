// What mixed operations that read one source compute: candidates resolved to units of work,
// batch-norm slots and offsets into the packed rows. Shared by every device; no torch headers.
//
// Kernels compiled for one instruction set read these vectors but must not grow or copy them: the
// linker could keep their copy of a library function for everyone.
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

// Which pointwise results a forward pass keeps for the backward pass; the others are made again.
enum class Keep : int64_t {
  kAll,
  kMiddle,  // the first halves of separable convolutions, which feed a second convolution
  kInput,   // none
};

// One mixed operation: which candidates, and where its rows begin in a client's packed tensors.
struct EdgeSpec {
  std::vector<int64_t> candidates;  // distinct values of Candidate
  int64_t weights = 0;              // first mixing weight
  int64_t params = 0;               // first parameter
  int64_t norms = 0;                // first batch norm, in the rows of the statistics
};

// Batch norm of one candidate (or of the first half of a separable one).
struct Norm {
  int64_t slot = 0;          // row of the statistics
  int partial = 0;           // index of its per-image sums; pools of one source share theirs
  int64_t affine = kAbsent;  // offset of gamma, then beta, in the packed parameters
};

// ReLU, depthwise convolution (or, for a factorized reduce, two shifted grids), pointwise product.
struct Unit {
  int edge = 0;
  int kernel = 0;  // 0: factorized reduce
  int dilation = 1;
  int stride = 1;
  int source = kFromInput;      // unit whose normalised, rectified result is the input
  int norm = 0;                 // index in Plan::norms
  int64_t weight = kAbsent;     // its mixing weight; kAbsent: an intermediate result
  int64_t depthwise = kAbsent;  // offsets in the packed parameters
  int64_t pointwise = kAbsent;  // factorized reduce: conv_1, conv_2 directly behind it
  int kept = kAbsent;           // index among the results kept for the backward pass
  int transient = kAbsent;      // index among the others

  bool factorized() const { return kernel == 0; }
  bool intermediate() const { return weight == kAbsent; }
};

struct Pool {
  int64_t weight = kAbsent;
  int norm = kAbsent;
  bool present() const { return weight != kAbsent; }
};

struct Edge {
  Pool max_pool;
  Pool avg_pool;
  int64_t identity = kAbsent;  // mixing weight of a stride-1 skip
  std::vector<int64_t> all_weights;
};

struct Plan {
  int channels = 0;
  int stride = 1;
  std::vector<Edge> edges;
  std::vector<Unit> units;  // every unit that reads x comes before those that read another unit
  std::vector<Norm> norms;
  int partials = 0;  // distinct per-image sums
  int kept = 0;      // results kept for the backward pass, those of earlier plans included
  int transients = 0;
  int64_t norm_slots = 0;  // lengths of one client's rows, as far as these edges reach
  int64_t parameters = 0;

  int first_half_units() const;  // units that read x
  bool pools() const;            // whether any edge has a pool
};

// Channels >= 1; stride 1 or 2; even channels if a factorized reduce is among the candidates. The
// caller has checked this. `first_kept`: results kept by the plans before this one.
Plan make_plan(const std::vector<EdgeSpec>& edges, int channels, int stride, bool affine, Keep keep,
               int first_kept = 0);

}  // namespace metadnas
