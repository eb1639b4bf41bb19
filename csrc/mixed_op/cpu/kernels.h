// The kernels of each instruction set, defined in one `kernels_<isa>.cpp` each.
#pragma once

#include "common/isa.h"
#include "mixed_op/args.h"

namespace metadnas {

template <Isa isa>
const ElementKernels<MixedOpKernels>& mixed_op_kernels();

template <>
const ElementKernels<MixedOpKernels>& mixed_op_kernels<Isa::kBaseline>();
template <>
const ElementKernels<MixedOpKernels>& mixed_op_kernels<Isa::kAvx2>();
template <>
const ElementKernels<MixedOpKernels>& mixed_op_kernels<Isa::kAvx512>();

// Of one element type, chosen at run time.
template <class T>
const MixedOpKernels<T>& mixed_op_kernels(Isa isa) {
  return with_isa(isa, []<Isa chosen>() -> const MixedOpKernels<T>& {
    return mixed_op_kernels<chosen>().template of<T>();
  });
}

}  // namespace metadnas
