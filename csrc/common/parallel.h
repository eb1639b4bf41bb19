// Threads and scratch memory. No torch headers here: kernels compiled for one instruction set
// include this file.
#pragma once

#include <cstddef>
#include <cstdint>

namespace metadnas {

// Calls body(context, i) for i in [0, n) on torch's own thread pool. `body` must not throw.
void parallel_for_each(int64_t n, void (*body)(void* context, int64_t i), void* context);

template <class F>
void parallel_for_each(int64_t n, F&& body) {
  parallel_for_each(
      n, [](void* context, int64_t i) { (*static_cast<F*>(context))(i); },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Grow-only scratch memory, kept between calls. One arena serves one thread and one nesting level:
// `call_arena` the thread that runs an operator, `worker_arena` the tasks it starts.
class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena();

  // Forgets what was handed out and makes room for `bytes`. Throws std::bad_alloc.
  void reset(size_t bytes);

  // `count` elements, aligned to a cache line, contents undefined.
  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(static_cast<size_t>(count) * sizeof(T)));
  }

  static constexpr size_t rounded(size_t bytes) { return (bytes + 63) / 64 * 64; }

 private:
  void* take_bytes(size_t bytes);

  void* memory_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
};

Arena& call_arena();
Arena& worker_arena();

}  // namespace metadnas
