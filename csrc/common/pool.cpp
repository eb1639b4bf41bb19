#include "common/pool.h"

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <iterator>
#include <map>
#include <mutex>
#include <new>

#include "common/huge.h"

namespace metadnas {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;

constexpr size_t kSmallest = size_t{1} << 20;  // below, torch's own allocator does as well

class Pool {
 public:
  // At least `bytes`; a block more than a quarter too large is left for others.
  void* acquire(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = idle_.lower_bound(bytes);
    if (found != idle_.end() && found->first <= bytes + bytes / 4) {
      void* block = found->second;
      idle_bytes_ -= found->first;
      used_[block] = found->first;
      idle_.erase(found);
      return block;
    }
    const size_t size = huge_rounded(bytes);
    drop(size);
    void* block = huge_alloc(size);
    if (block == nullptr) throw std::bad_alloc();
    used_[block] = size;
    return block;
  }

  void release(void* block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = used_.find(block);
    idle_.emplace(found->second, block);
    idle_bytes_ += found->second;
    used_.erase(found);
  }

  void release_idle() {
    const std::lock_guard<std::mutex> lock(mutex_);
    drop(idle_bytes_);
  }

  size_t idle_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return idle_bytes_;
  }

 private:
  // Frees idle blocks, the largest first, until `bytes` are free or none is left: the pool never
  // holds more than what was once in use together.
  void drop(size_t bytes) {
    for (size_t freed = 0; freed < bytes && !idle_.empty();) {
      const auto last = std::prev(idle_.end());
      freed += last->first;
      idle_bytes_ -= last->first;
      std::free(last->second);
      idle_.erase(last);
    }
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> idle_;
  std::map<void*, size_t> used_;
  size_t idle_bytes_ = 0;
};

// Never destroyed: tensors may outlive everything else at exit.
Pool& pool() {
  static Pool* const instance = new Pool;
  return *instance;
}

}  // namespace

torch::stable::Tensor pooled_like(const torch::stable::Tensor& x,
                                  const std::vector<int64_t>& sizes) {
  size_t bytes = static_cast<size_t>(x.element_size());
  for (const int64_t size : sizes) bytes *= static_cast<size_t>(size);
  if (bytes < kSmallest) {
    return torch::stable::new_empty(x, IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
  }
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t d = sizes.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * sizes[d];
  return torch::stable::from_blob(pool().acquire(bytes), {sizes.data(), sizes.size()},
                                  {strides.data(), strides.size()}, x.device(), x.scalar_type(),
                                  [](void* block) { pool().release(block); });
}

int64_t pool_idle_bytes() { return static_cast<int64_t>(pool().idle_bytes()); }

void pool_release() { pool().release_idle(); }

}  // namespace metadnas
