// The instruction sets the kernels are compiled for, and the choice among them at run time.
#pragma once

#include <string>

#include "mixed_op/cpu/args.h"

namespace metadnas {

struct CpuKernels {
  MixedOpKernels<float> single;
  MixedOpKernels<double> full;

  template <class T>
  const MixedOpKernels<T>& of() const {
    if constexpr (sizeof(T) == 4) {
      return single;
    } else {
      return full;
    }
  }
};

const CpuKernels& cpu_kernels_baseline();
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
const CpuKernels& cpu_kernels_avx2();
const CpuKernels& cpu_kernels_avx512();
#endif

// The widest instruction set this processor has; the environment variable METADNAS_EXT_ISA
// (avx512, avx2 or baseline) lowers it. Throws std::invalid_argument on another value, or on one
// that this processor lacks.
const std::string& cpu_isa();

// Kernels for `channels` channels: vectors no wider than the channels can fill.
template <class T>
const MixedOpKernels<T>& kernels_for(int channels);

}  // namespace metadnas
