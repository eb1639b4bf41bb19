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

}  // namespace metadnas::row_optimizers
