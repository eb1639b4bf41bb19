// common/parallel without torch: tasks in any order or on threads of their own, and scratch memory
// whose every piece lies between guards and is gone after the next reset.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>

#include "common/parallel.h"
#include "guarded.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(start, size)
#define ASAN_UNPOISON_MEMORY_REGION(start, size)
#endif

namespace testing {
namespace {

constexpr size_t kGuard = 128;  // more than the longest vector, and a multiple of it
constexpr unsigned char kPattern = 0xa5;

std::mutex mutex;
std::unordered_map<void*, size_t>& sizes() {
  static std::unordered_map<void*, size_t> all;
  return all;
}

size_t rounded(size_t bytes) { return metadnas::Arena::rounded(bytes); }

}  // namespace

Order task_order = Order::kForward;

void* guarded_alloc(size_t bytes) {
  const size_t all = kGuard + rounded(bytes) + kGuard;
  auto* block = static_cast<unsigned char*>(std::aligned_alloc(64, all));
  if (block == nullptr) std::abort();
  std::memset(block, kPattern, all);
  std::memset(block + kGuard, 0xff, bytes);
  ASAN_POISON_MEMORY_REGION(block, kGuard);
  ASAN_POISON_MEMORY_REGION(block + kGuard + bytes, all - kGuard - bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  sizes()[block + kGuard] = bytes;
  return block + kGuard;
}

void guarded_free(void* data) {
  if (data == nullptr) return;
  size_t bytes = 0;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = sizes().find(data);
    bytes = found->second;
    sizes().erase(found);
  }
  unsigned char* block = static_cast<unsigned char*>(data) - kGuard;
  const size_t all = kGuard + rounded(bytes) + kGuard;
  ASAN_UNPOISON_MEMORY_REGION(block, all);
  for (size_t i = 0; i < all; ++i) {
    if (i == kGuard) i += bytes;
    if (block[i] == kPattern) continue;
    std::fprintf(stderr, "written %td bytes from the start of a buffer of %zu bytes\n",
                 static_cast<ptrdiff_t>(i) - static_cast<ptrdiff_t>(kGuard), bytes);
    std::abort();
  }
  std::free(block);
}

}  // namespace testing

namespace metadnas {
namespace {

struct Pieces {
  std::vector<void*> all;
  ~Pieces() {
    for (void* piece : all) testing::guarded_free(piece);
  }
};

}  // namespace

void parallel_for_each(int64_t n, void (*body)(void* context, int64_t i), void* context) {
  using testing::Order;
  std::vector<int64_t> order(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) order[static_cast<size_t>(i)] = i;
  if (testing::task_order != Order::kForward) {
    static std::mt19937 random(1);
    std::shuffle(order.begin(), order.end(), random);
  }
  if (testing::task_order != Order::kThreads) {
    for (const int64_t i : order) body(context, i);
    return;
  }
  std::atomic<size_t> next = 0;
  auto work = [&] {
    for (size_t i = next++; i < order.size(); i = next++) body(context, order[i]);
  };
  std::thread other(work);
  work();
  other.join();
}

Arena::~Arena() { delete static_cast<Pieces*>(memory_); }

// Unlike the real one it never keeps more than it was asked for, so that a size that is only right
// after a larger call is found out.
void Arena::reset(size_t bytes) {
  delete static_cast<Pieces*>(memory_);
  memory_ = new Pieces;
  used_ = 0;
  capacity_ = rounded(bytes);
}

void* Arena::take_bytes(size_t bytes) {
  used_ += rounded(bytes);
  if (used_ > capacity_) {
    std::fprintf(stderr, "an arena of %zu bytes is asked for %zu\n", capacity_, used_);
    std::abort();
  }
  void* piece = testing::guarded_alloc(bytes);
  static_cast<Pieces*>(memory_)->all.push_back(piece);
  return piece;
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
