// The optimisers' kernels for AVX2 with FMA.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <cmath>
#include <cstdint>
#include <utility>

#include "common/parallel.h"
#include "row_optimizers/args.h"
#include "row_optimizers/cpu/kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define METADNAS_ISA avx2
#define METADNAS_VECTOR_BYTES 32
#include "row_optimizers/cpu/steps.h"

namespace metadnas::row_optimizers {

namespace native = metadnas::avx2::row_optimizers;

template <>
const ElementKernels<Kernels>& kernels<Isa::kAvx2>() {
  static const ElementKernels<Kernels> both{
      {native::adam<float>, native::sgd<float>, native::square_sums<float>},
      {native::adam<double>, native::sgd<double>, native::square_sums<double>}};
  return both;
}

}  // namespace metadnas::row_optimizers
#endif
