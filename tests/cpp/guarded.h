// Memory that shows every access beyond its ends: poisoned for AddressSanitizer, and a pattern in
// it for what the sanitizer cannot see (masked and streaming vector instructions).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace testing {

// `bytes` bytes of 0xff (a NaN in every element), aligned to a cache line, between two guards.
void* guarded_alloc(size_t bytes);
// Aborts if a guard was written to. Null does nothing.
void guarded_free(void* data);

// Exactly `size` elements.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t size)
      : size_(size), data_(static_cast<T*>(guarded_alloc(static_cast<size_t>(size) * sizeof(T)))) {}
  explicit Guarded(const std::vector<double>& values)
      : Guarded(static_cast<int64_t>(values.size())) {
    for (int64_t i = 0; i < size_; ++i) {
      data_[i] = static_cast<T>(values[static_cast<size_t>(i)]);
    }
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { guarded_free(data_); }

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) const { return data_[i]; }
  std::vector<double> values() const { return {data_, data_ + size_}; }

 private:
  int64_t size_;
  T* data_;
};

// How parallel_for_each goes through its tasks: the results must not show it.
enum class Order { kForward, kShuffled, kThreads };
extern Order task_order;

}  // namespace testing
