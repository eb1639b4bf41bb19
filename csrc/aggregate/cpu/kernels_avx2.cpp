// The aggregation kernels for AVX2 with FMA.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "aggregate/cpu/kernels.h"
#include "common/parallel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define METADNAS_ISA avx2
#define METADNAS_VECTOR_BYTES 32
#include "aggregate/cpu/gram.h"
#include "aggregate/cpu/mean.h"
#include "aggregate/cpu/mixtures.h"
#include "aggregate/cpu/rank_mean.h"

namespace metadnas {

template <>
const ElementKernels<AggregateKernels>& aggregate_kernels<Isa::kAvx2>() {
  static const ElementKernels<AggregateKernels> both{
      {avx2::mean<float>, avx2::mixtures<float>, avx2::rank_mean<float>, avx2::gram<float>},
      {avx2::mean<double>, avx2::mixtures<double>, avx2::rank_mean<double>, avx2::gram<double>},
  };
  return both;
}

}  // namespace metadnas
#endif
