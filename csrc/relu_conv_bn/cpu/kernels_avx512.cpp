// The kernels of ReLU, 1x1 convolution and batch norm for AVX-512.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <cmath>
#include <cstdint>
#include <utility>

#include "common/parallel.h"
#include "relu_conv_bn/args.h"
#include "relu_conv_bn/cpu/kernels.h"
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#pragma GCC target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c,bmi,bmi2")
#define METADNAS_ISA avx512
#define METADNAS_VECTOR_BYTES 64
#include "relu_conv_bn/cpu/backward.h"
#include "relu_conv_bn/cpu/forward.h"

namespace metadnas::relu_conv_bn {

namespace native = metadnas::avx512::relu_conv_bn;

template <>
const ElementKernels<Kernels>& kernels<Isa::kAvx512>() {
  static const ElementKernels<Kernels> both{{native::forward<float>, native::backward<float>},
                                            {native::forward<double>, native::backward<double>}};
  return both;
}

}  // namespace metadnas::relu_conv_bn
#endif
