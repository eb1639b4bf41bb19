// Large blocks on huge pages where the system has them: far fewer page faults and address
// translations.
#pragma once

#include <cstddef>
#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace metadnas {

inline constexpr size_t kHugePage = size_t{2} << 20;

inline constexpr size_t huge_rounded(size_t bytes) {
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

// `bytes` is a multiple of kHugePage. Null if there is no memory; to be freed by std::free.
inline void* huge_alloc(size_t bytes) {
  void* block = std::aligned_alloc(kHugePage, bytes);
#if defined(__linux__)
  if (block != nullptr) madvise(block, bytes, MADV_HUGEPAGE);  // a wish; refusal does no harm
#endif
  return block;
}

// Hands the pages of a block back to the system at once: malloc may keep what is freed for later.
// The block's contents are lost.
inline void huge_discard(void* block, size_t bytes) {
#if defined(__linux__)
  madvise(block, bytes, MADV_DONTNEED);
#endif
}

}  // namespace metadnas
