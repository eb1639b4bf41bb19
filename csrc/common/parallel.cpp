#include "common/parallel.h"

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "common/huge.h"

namespace metadnas {

void parallel_for_each(int64_t n, void (*body)(void* context, int64_t i), void* context) {
  // Threads take the next task when they are done with one: on a shared machine they are never
  // equally fast.
  std::atomic<int64_t> next{0};
  torch::stable::parallel_for(0, n, 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < n; i = next++) body(context, i);
  });
}

Arena::~Arena() { std::free(memory_); }

void Arena::reset(size_t bytes) {
  used_ = 0;
  size_t wanted = rounded(bytes);
  if (wanted <= capacity_) return;
  std::free(memory_);
  capacity_ = 0;
  const bool large = wanted >= kHugePage;
  if (large) wanted = huge_rounded(wanted);
  memory_ = large ? huge_alloc(wanted) : std::aligned_alloc(64, wanted);
  if (memory_ == nullptr) throw std::bad_alloc();
  capacity_ = wanted;
}

void* Arena::take_bytes(size_t bytes) {
  const size_t start = used_;
  used_ += rounded(bytes);
  if (used_ > capacity_) std::abort();  // a sizing mistake in a kernel, never the caller's
  return static_cast<char*>(memory_) + start;
}

Arena& call_arena() {
  thread_local Arena arena;
  return arena;
}

Arena& worker_arena() {
  thread_local Arena arena;
  return arena;
}

}  // namespace metadnas
