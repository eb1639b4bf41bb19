// The mixed operation's kernels for AVX-512.
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

#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c,bmi,bmi2")
#define METADNAS_ISA avx512
#define METADNAS_VECTOR_BYTES 64
#include "mixed_op/cpu/backward.h"
#include "mixed_op/cpu/forward.h"

namespace metadnas {

template <>
const ElementKernels<MixedOpKernels>& mixed_op_kernels<Isa::kAvx512>() {
  static const ElementKernels<MixedOpKernels> both{
      {avx512::mixed_op_forward<float>, avx512::mixed_op_backward<float>},
      {avx512::mixed_op_forward<double>, avx512::mixed_op_backward<double>},
  };
  return both;
}

}  // namespace metadnas
#endif
