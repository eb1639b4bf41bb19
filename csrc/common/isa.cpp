#include "common/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace metadnas {
namespace {

struct Description {
  Isa isa;
  std::string name;
  size_t vector_bytes;
};

// From the widest to the narrowest.
std::vector<Description> supported() {
  std::vector<Description> result;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    result.push_back({Isa::kAvx512, "avx512", 64});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    result.push_back({Isa::kAvx2, "avx2", 32});
  }
#endif
  result.push_back({Isa::kBaseline, "baseline", 16});
  return result;
}

std::vector<Description> choose() {
  std::vector<Description> all = supported();
  const char* wanted = std::getenv("METADNAS_EXT_ISA");
  if (wanted == nullptr || *wanted == '\0') return all;
  std::string names;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i].name == wanted) return {all.begin() + static_cast<ptrdiff_t>(i), all.end()};
    names += (i ? ", " : "") + all[i].name;
  }
  throw std::invalid_argument("METADNAS_EXT_ISA is '" + std::string(wanted) +
                              "'; this processor has " + names);
}

const std::vector<Description>& chosen() {
  static const std::vector<Description> descriptions = choose();
  return descriptions;
}

}  // namespace

Isa widest_isa() { return chosen().front().isa; }

const std::string& cpu_isa() { return chosen().front().name; }

Isa isa_for(int channels, size_t element_bytes) {
  for (const Description& one : chosen()) {
    if (static_cast<size_t>(channels) > one.vector_bytes / element_bytes / 2) return one.isa;
  }
  return chosen().back().isa;
}

}  // namespace metadnas
