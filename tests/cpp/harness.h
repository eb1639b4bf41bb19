// The little that the tests need: numbers, comparisons, a count of failures.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "common/isa.h"

namespace testing {

inline int failures = 0;
inline int64_t comparisons = 0;

inline void fail(const std::string& what) {
  if (++failures <= 20) std::fprintf(stderr, "FAILED %s\n", what.c_str());
}

inline void check(bool held, const std::string& what) {
  ++comparisons;
  if (!held) fail(what);
}

// |got - want| <= tolerance * (1 + the largest |want|), NaN and infinities the same.
inline void compare(const std::string& what, const std::vector<double>& got,
                    const std::vector<double>& want, double tolerance) {
  ++comparisons;
  if (got.size() != want.size()) return fail(what + ": another size");
  double scale = 1;
  for (const double w : want) scale = std::isfinite(w) ? std::fmax(scale, std::fabs(w)) : scale;
  for (size_t i = 0; i < got.size(); ++i) {
    const bool same = (std::isnan(got[i]) && std::isnan(want[i])) || got[i] == want[i] ||
                      std::fabs(got[i] - want[i]) <= tolerance * scale;
    if (same) continue;
    return fail(what + "[" + std::to_string(i) + "] is " + std::to_string(got[i]) + ", expected " +
                std::to_string(want[i]) + " (largest: " + std::to_string(scale) + ")");
  }
}

// The same numbers on every machine.
class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}

  int below(int n) { return static_cast<int>(engine_() % static_cast<uint64_t>(n)); }
  bool flip() { return below(2) == 1; }
  template <class U>
  const U& of(const std::vector<U>& all) {
    return all[static_cast<size_t>(below(static_cast<int>(all.size())))];
  }
  // In (-1.5, 1.5), exact in single precision.
  double number() { return (below(3 << 20) + 0.5) / (1 << 20) - 1.5; }
  std::vector<double> numbers(int64_t count) {
    std::vector<double> all(static_cast<size_t>(count));
    for (double& v : all) v = number();
    return all;
  }

 private:
  std::mt19937_64 engine_;
};

// What this processor has, or METADNAS_EXT_ISA allows.
inline std::vector<metadnas::Isa> instruction_sets() {
  std::vector<metadnas::Isa> all;
  for (const auto isa : {metadnas::Isa::kBaseline, metadnas::Isa::kAvx2, metadnas::Isa::kAvx512}) {
    if (isa <= metadnas::widest_isa()) all.push_back(isa);
  }
  return all;
}

inline std::string name_of(metadnas::Isa isa) {
  return isa == metadnas::Isa::kBaseline ? "baseline"
         : isa == metadnas::Isa::kAvx2   ? "avx2"
                                         : "avx512";
}

}  // namespace testing
