// The aggregation kernels for whatever the compiler targets by default (SSE2, NEON).
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#include "aggregate/cpu/kernels.h"
#include "common/parallel.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define METADNAS_ISA baseline
#define METADNAS_VECTOR_BYTES 16
#include "aggregate/cpu/gram.h"
#include "aggregate/cpu/mean.h"
#include "aggregate/cpu/mixtures.h"
#include "aggregate/cpu/rank_mean.h"

namespace metadnas {

template <>
const ElementKernels<AggregateKernels>& aggregate_kernels<Isa::kBaseline>() {
  static const ElementKernels<AggregateKernels> both{
      {baseline::mean<float>, baseline::mixtures<float>, baseline::rank_mean<float>,
       baseline::gram<float>},
      {baseline::mean<double>, baseline::mixtures<double>, baseline::rank_mean<double>,
       baseline::gram<double>},
  };
  return both;
}

}  // namespace metadnas
