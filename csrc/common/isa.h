// The instruction sets kernels are compiled for, and the choice among them at run time.
#pragma once

#include <cstddef>
#include <string>

namespace metadnas {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The widest instruction set this processor has; the environment variable METADNAS_EXT_ISA
// (avx512, avx2 or baseline) lowers it. Throws std::invalid_argument on another value, or on one
// that this processor lacks.
Isa widest_isa();

const std::string& cpu_isa();  // its name

// For rows of `channels` elements: vectors no wider than the channels can fill.
Isa isa_for(int channels, size_t element_bytes);

// f.operator()<isa>(): from the choice at run time to a constant, among what was compiled.
template <class F>
decltype(auto) with_isa(Isa isa, F&& f) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (isa == Isa::kAvx512) return f.template operator()<Isa::kAvx512>();
  if (isa == Isa::kAvx2) return f.template operator()<Isa::kAvx2>();
#endif
  return f.template operator()<Isa::kBaseline>();
}

// One operator's kernels of one instruction set, by element type.
template <template <class T> class Kernels>
struct ElementKernels {
  Kernels<float> single;
  Kernels<double> full;

  template <class T>
  const Kernels<T>& of() const {
    if constexpr (sizeof(T) == sizeof(float)) {
      return single;
    } else {
      return full;
    }
  }
};

}  // namespace metadnas
