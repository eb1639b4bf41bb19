#include "aggregate/cpu/kernels.h"

#include "mixed_op/cpu/isa.h"

namespace metadnas {

const AggregateTable& aggregate_kernels() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (cpu_isa() == "avx512") return aggregate_avx512();
  if (cpu_isa() == "avx2") return aggregate_avx2();
#endif
  return aggregate_baseline();
}

}  // namespace metadnas
