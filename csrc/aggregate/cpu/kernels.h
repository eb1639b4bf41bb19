// The kernels of each instruction set, defined in one `kernels_<isa>.cpp` each.
#pragma once

#include "aggregate/args.h"
#include "common/isa.h"

namespace metadnas {

template <Isa isa>
const ElementKernels<AggregateKernels>& aggregate_kernels();

template <>
const ElementKernels<AggregateKernels>& aggregate_kernels<Isa::kBaseline>();
template <>
const ElementKernels<AggregateKernels>& aggregate_kernels<Isa::kAvx2>();
template <>
const ElementKernels<AggregateKernels>& aggregate_kernels<Isa::kAvx512>();

// Of one element type, chosen at run time.
template <class T>
const AggregateKernels<T>& aggregate_kernels(Isa isa) {
  return with_isa(isa, []<Isa chosen>() -> const AggregateKernels<T>& {
    return aggregate_kernels<chosen>().template of<T>();
  });
}

}  // namespace metadnas
