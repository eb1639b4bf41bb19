#include "mixed_op/cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <vector>

namespace metadnas {
namespace {

// From the widest to the narrowest.
std::vector<const CpuKernels*> supported() {
  std::vector<const CpuKernels*> result;
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    result.push_back(&cpu_kernels_avx512());
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    result.push_back(&cpu_kernels_avx2());
  }
#endif
  result.push_back(&cpu_kernels_baseline());
  return result;
}

std::vector<const CpuKernels*> choose() {
  std::vector<const CpuKernels*> all = supported();
  const char* wanted = std::getenv("METADNAS_EXT_ISA");
  if (wanted == nullptr || *wanted == '\0') return all;
  std::string names;
  for (size_t i = 0; i < all.size(); ++i) {
    if (all[i]->single.name == std::string(wanted)) return {all.begin() + i, all.end()};
    names += (i ? ", " : "") + std::string(all[i]->single.name);
  }
  throw std::invalid_argument("METADNAS_EXT_ISA is '" + std::string(wanted) +
                              "'; this processor has " + names);
}

const std::vector<const CpuKernels*>& chosen() {
  static const std::vector<const CpuKernels*> kernels = choose();
  return kernels;
}

}  // namespace

const std::string& cpu_isa() {
  static const std::string name = chosen().front()->single.name;
  return name;
}

template <class T>
const MixedOpKernels<T>& kernels_for(int channels) {
  for (const CpuKernels* kernels : chosen()) {
    if (channels > kernels->of<T>().lanes / 2) return kernels->of<T>();
  }
  return chosen().back()->of<T>();
}

template const MixedOpKernels<float>& kernels_for<float>(int channels);
template const MixedOpKernels<double>& kernels_for<double>(int channels);

}  // namespace metadnas
