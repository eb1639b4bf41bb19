#include "mixed_op/cpu/isa.h"

namespace metadnas {
namespace {

const CpuKernels& kernels_of(Isa isa) {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  if (isa == Isa::kAvx512) return cpu_kernels_avx512();
  if (isa == Isa::kAvx2) return cpu_kernels_avx2();
#endif
  return cpu_kernels_baseline();
}

}  // namespace

template <class T>
const MixedOpKernels<T>& kernels_for(int channels) {
  return kernels_of(isa_for(channels, sizeof(T))).of<T>();
}

template const MixedOpKernels<float>& kernels_for<float>(int channels);
template const MixedOpKernels<double>& kernels_for<double>(int channels);

}  // namespace metadnas
