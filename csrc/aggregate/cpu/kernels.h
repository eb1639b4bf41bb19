// The aggregation kernels of each instruction set, and those of this processor.
#pragma once

#include "aggregate/args.h"

namespace metadnas {

struct AggregateTable {
  AggregateKernels<float> single;
  AggregateKernels<double> full;

  template <class T>
  const AggregateKernels<T>& of() const {
    if constexpr (sizeof(T) == 4) {
      return single;
    } else {
      return full;
    }
  }
};

const AggregateTable& aggregate_baseline();
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
const AggregateTable& aggregate_avx2();
const AggregateTable& aggregate_avx512();
#endif

// Follows the instruction set chosen for the mixed operation, METADNAS_EXT_ISA included.
const AggregateTable& aggregate_kernels();

}  // namespace metadnas
