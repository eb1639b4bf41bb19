// The kernels of ReLU, 1x1 convolution and batch norm for whatever the compiler targets by default
// (SSE2, NEON).
#include <cmath>
#include <cstdint>
#include <utility>

#include "common/parallel.h"
#include "relu_conv_bn/args.h"
#include "relu_conv_bn/cpu/kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define METADNAS_ISA baseline
#define METADNAS_VECTOR_BYTES 16
#include "relu_conv_bn/cpu/backward.h"
#include "relu_conv_bn/cpu/forward.h"

namespace metadnas::relu_conv_bn {

namespace native = metadnas::baseline::relu_conv_bn;

template <>
const ElementKernels<Kernels>& kernels<Isa::kBaseline>() {
  static const ElementKernels<Kernels> both{{native::forward<float>, native::backward<float>},
                                            {native::forward<double>, native::backward<double>}};
  return both;
}

}  // namespace metadnas::relu_conv_bn
