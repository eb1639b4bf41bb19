// The kernels of each instruction set, defined in one `kernels_<isa>.cpp` each.
#pragma once

#include "common/isa.h"
#include "row_optimizers/args.h"

namespace metadnas::row_optimizers {

template <Isa isa>
const ElementKernels<Kernels>& kernels();

template <>
const ElementKernels<Kernels>& kernels<Isa::kBaseline>();
template <>
const ElementKernels<Kernels>& kernels<Isa::kAvx2>();
template <>
const ElementKernels<Kernels>& kernels<Isa::kAvx512>();

// Of one element type, chosen at run time.
template <class T>
const Kernels<T>& kernels(Isa isa) {
  return with_isa(
      isa, []<Isa chosen>() -> const Kernels<T>& { return kernels<chosen>().template of<T>(); });
}

}  // namespace metadnas::row_optimizers
