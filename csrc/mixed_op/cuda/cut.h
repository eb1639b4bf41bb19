// The choice of tiles by what fits the shared memory of a block. Host code.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "mixed_op/cuda/tiles.cuh"

namespace metadnas::mixed_op {

// Two blocks share a multiprocessor of 228 kB; where nothing fits this, kMostShared is the limit.
inline constexpr size_t kSharedBudget = 96 * 1024;

inline int power_of_two_from(int n) {
  int power = 1;
  while (power < n) power *= 2;
  return power;
}

// Columns of results that a thread holds of a pixel, kQuad pixels at once, so that kThreads hold
// all of a tile's; 0 if they cannot. Without vectors there is only one way.
inline int product_columns(int pixels, int columns, int vector) {
  for (const int each : {2, 4, 8}) {
    if (each < 8 && vector == 1) continue;
    if (pixels / kQuad * ceil_div(columns, each) <= kThreads) return each;
  }
  return 0;
}

// Rows of a matrix in shared memory at a time.
inline int staged_rows(int rows, int pitch) {
  constexpr int kMost = 4608;  // elements: all of 64 x 64
  return rows * pitch <= kMost ? rows : kMost / pitch > 1 ? kMost / pitch : 1;
}

// Pieces of shared memory, in elements, each aligned for vectors.
class SharedLayout {
 public:
  int take(int count) {
    const int at = total_;
    total_ += ceil_div(count, kQuad) * kQuad;
    return at;
  }
  void extend_to(int count) { total_ = std::max(total_, ceil_div(count, kQuad) * kQuad); }
  int total() const { return total_; }

 private:
  int total_ = 0;
};

// The first of the cuts that fits: tiles from large to small, windows of all channels first.
// make(pixels, chunk) gives a cut and the bytes it takes; 0 bytes: not a cut.
template <class Make>
auto first_that_fits(const char* stage, int channels, int most_chunk, Make&& make) {
  const int all = power_of_two_from(channels);
  for (const size_t budget : {kSharedBudget, cuda::kMostShared}) {
    if (all <= most_chunk) {
      for (const int pixels : {128, 64}) {
        const auto [cut, bytes] = make(pixels, all);
        if (bytes > 0 && bytes <= budget) return cut;
      }
    }
    for (int pixels = 128; pixels >= kStrip; pixels /= 2) {
      for (int chunk = 32; chunk >= 1; chunk /= 2) {
        if (chunk > all || chunk * pixels < kThreads * kStrip / 2) continue;
        const auto [cut, bytes] = make(pixels, chunk);
        if (bytes > 0 && bytes <= budget) return cut;
      }
    }
    for (int pixels = 128; pixels >= kStrip; pixels /= 2) {
      for (int chunk = 32; chunk >= 1; chunk /= 2) {
        if (chunk > all) continue;
        const auto [cut, bytes] = make(pixels, chunk);
        if (bytes > 0 && bytes <= budget) return cut;
      }
    }
  }
  throw std::runtime_error(std::string(stage) + ": " + std::to_string(channels) +
                           " channels do not fit the shared memory of a block");
}

}  // namespace metadnas::mixed_op
