#include "common/pool.h"

#include <torch/csrc/stable/ops.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

#include "common/huge.h"

namespace metadnas {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;

constexpr size_t kSmallest = size_t{1} << 20;  // below, torch's own allocator does as well

struct Block {
  void* memory;
  size_t size;
};

class Pool {
 public:
  // At least `bytes`: the smallest idle block that is at most a quarter too large, or a new one.
  void* acquire(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
      const bool fits = it->size >= bytes && it->size <= bytes + bytes / 4;
      if (fits && (best == idle_.end() || it->size < best->size)) best = it;
    }
    Block block;
    if (best != idle_.end()) {
      block = *best;
      idle_.erase(best);
      idle_bytes_ -= block.size;
    } else {
      block.size = huge_rounded(bytes);
      make_room(block.size);
      block.memory = huge_alloc(block.size);
      if (block.memory == nullptr) throw std::bad_alloc();
    }
    used_[block.memory] = block.size;
    used_bytes_ += block.size;
    if (used_bytes_ > peak_bytes_) peak_bytes_ = used_bytes_;
    return block.memory;
  }

  void release(void* memory) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = used_.find(memory);
    idle_.push_back({memory, found->second});
    idle_bytes_ += found->second;
    used_bytes_ -= found->second;
    used_.erase(found);
  }

  // Bytes given back.
  size_t release_idle() {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t released = idle_bytes_;
    for (const Block& block : idle_) huge_discard(block.memory, block.size);
    while (!idle_.empty()) drop_oldest();
    peak_bytes_ = used_bytes_;
    return released;
  }

  size_t idle_bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return idle_bytes_;
  }

 private:
  // The pool holds at most a quarter more than what was once in use together.
  void make_room(size_t bytes) {
    const size_t most = peak_bytes_ + peak_bytes_ / 4;
    while (!idle_.empty() && used_bytes_ + idle_bytes_ + bytes > most) drop_oldest();
  }

  void drop_oldest() {
    std::free(idle_.front().memory);
    idle_bytes_ -= idle_.front().size;
    idle_.erase(idle_.begin());
  }

  std::mutex mutex_;
  std::vector<Block> idle_;  // in the order of their release
  std::map<void*, size_t> used_;
  size_t idle_bytes_ = 0;
  size_t used_bytes_ = 0;
  size_t peak_bytes_ = 0;
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

int64_t pool_release() { return static_cast<int64_t>(pool().release_idle()); }

}  // namespace metadnas
