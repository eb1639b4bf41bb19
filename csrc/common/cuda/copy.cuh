// Copies from global to shared memory that go on beside what the thread does next, and need no
// registers.
#pragma once

#include "common/cuda/runtime.h"

namespace metadnas::cuda {

// 4, 8 or 16 bytes. In place behind the thread's wait_for_copies(), for others behind a barrier.
template <class T>
__device__ __forceinline__ void copy_async(T* shared, const T* global) {
  __pipeline_memcpy_async(shared, global, sizeof(T));
}

// For all copies of the thread.
__device__ __forceinline__ void wait_for_copies() {
  __pipeline_commit();
  __pipeline_wait_prior(0);
}

}  // namespace metadnas::cuda
