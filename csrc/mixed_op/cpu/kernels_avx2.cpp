// The mixed operation's kernels for AVX2 with FMA.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "common/parallel.h"
#include "mixed_op/cpu/kernels.h"
#include "mixed_op/plan.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define METADNAS_ISA avx2
#define METADNAS_VECTOR_BYTES 32
#include "mixed_op/cpu/backward.h"
#include "mixed_op/cpu/forward.h"

namespace metadnas {

template <>
const ElementKernels<MixedOpKernels>& mixed_op_kernels<Isa::kAvx2>() {
  static const ElementKernels<MixedOpKernels> both{
      {avx2::mixed_op_forward<float>, avx2::mixed_op_backward<float>},
      {avx2::mixed_op_forward<double>, avx2::mixed_op_backward<double>},
  };
  return both;
}

}  // namespace metadnas
#endif
