// The optimisers' kernels for whatever the compiler targets by default
// (SSE2, NEON).
#include <cmath>
#include <cstdint>
#include <utility>

#include "common/parallel.h"
#include "row_optimizers/args.h"
#include "row_optimizers/cpu/kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define METADNAS_ISA baseline
#define METADNAS_VECTOR_BYTES 16
#include "row_optimizers/cpu/steps.h"

namespace metadnas::row_optimizers {

namespace native = metadnas::baseline::row_optimizers;

template <>
const ElementKernels<Kernels>& kernels<Isa::kBaseline>() {
  static const ElementKernels<Kernels> both{
      {native::adam<float>, native::sgd<float>, native::square_sums<float>},
      {native::adam<double>, native::sgd<double>, native::square_sums<double>}};
  return both;
}

}  // namespace metadnas::row_optimizers
