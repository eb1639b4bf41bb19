// The mixed operation's kernels for whatever the compiler targets by default (SSE2, NEON).
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

#define METADNAS_ISA baseline
#define METADNAS_VECTOR_BYTES 16
#include "mixed_op/cpu/backward.h"
#include "mixed_op/cpu/forward.h"

namespace metadnas {

template <>
const ElementKernels<MixedOpKernels>& mixed_op_kernels<Isa::kBaseline>() {
  static const ElementKernels<MixedOpKernels> both{
      {baseline::mixed_op_forward<float>, baseline::mixed_op_backward<float>},
      {baseline::mixed_op_forward<double>, baseline::mixed_op_backward<double>},
  };
  return both;
}

}  // namespace metadnas
