// The kernels of each instruction set, defined in one `kernels_<isa>.cpp` each.
#pragma once

#include "common/isa.h"
#include "relu_conv_bn/args.h"

namespace metadnas::relu_conv_bn {

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

}  // namespace metadnas::relu_conv_bn
