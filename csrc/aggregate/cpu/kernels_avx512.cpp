// The aggregation kernels for AVX-512.
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

#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c,bmi,bmi2")
#define METADNAS_ISA avx512
#define METADNAS_VECTOR_BYTES 64
#include "aggregate/cpu/gram.h"
#include "aggregate/cpu/mean.h"
#include "aggregate/cpu/mixtures.h"
#include "aggregate/cpu/rank_mean.h"

namespace metadnas {

template <>
const ElementKernels<AggregateKernels>& aggregate_kernels<Isa::kAvx512>() {
  static const ElementKernels<AggregateKernels> both{
      {avx512::mean<float>, avx512::mixtures<float>, avx512::rank_mean<float>, avx512::gram<float>},
      {avx512::mean<double>, avx512::mixtures<double>, avx512::rank_mean<double>,
       avx512::gram<double>},
  };
  return both;
}

}  // namespace metadnas
#endif
