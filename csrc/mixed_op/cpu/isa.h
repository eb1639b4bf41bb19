// The mixed operation's kernels of each instruction set, and the choice among them.
#pragma once

#include "common/isa.h"
#include "mixed_op/cpu/args.h"

namespace metadnas {

using CpuKernels = ElementKernels<MixedOpKernels>;

const CpuKernels& cpu_kernels_baseline();
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
const CpuKernels& cpu_kernels_avx2();
const CpuKernels& cpu_kernels_avx512();
#endif

// Kernels for `channels` channels: vectors no wider than the channels can fill.
template <class T>
const MixedOpKernels<T>& kernels_for(int channels);

}  // namespace metadnas
