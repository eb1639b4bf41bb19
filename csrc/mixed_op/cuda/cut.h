// The choice of tiles by what fits the shared memory of a block. Host code.
#pragma once

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <string>

#include "mixed_op/cuda/tiles.h"

namespace metadnas::mixed_op {

// Two blocks share a multiprocessor of 228 kB; where nothing fits this, kMostShared is the limit.
inline constexpr size_t kSharedBudget = 96 * 1024;

// Channels that a thread loads into a window at once, at most; a chunk holds no fewer.
inline constexpr int kMostVector = 4;

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

// Rows of a matrix in shared memory at a time, in at most `bytes`.
inline int staged_rows(int rows, int pitch, size_t element, int bytes) {
  const int most = bytes / static_cast<int>(element);
  return rows * pitch <= most ? rows : std::max(most / pitch, 1);
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
auto find_cut(int channels, int most_chunk, size_t budget, Make&& make) {
  std::optional<decltype(make(0, 0).first)> found;
  const auto fits = [&](int pixels, int chunk) {
    const auto [cut, bytes] = make(pixels, chunk);
    if (bytes > 0 && bytes <= budget) found = cut;
    return found.has_value();
  };
  const int all = power_of_two_from(channels);
  const int least = std::min(all, kMostVector);
  if (all <= most_chunk && (fits(kMostPixels, all) || fits(kMostPixels / 2, all))) return found;
  // Chunks that keep all threads busy, then any.
  for (const int busy : {kThreads * kStrip / 2, 0}) {
    for (int pixels = kMostPixels; pixels >= kStrip; pixels /= 2) {
      for (int chunk = std::min(all, 32); chunk >= least && chunk * pixels >= busy; chunk /= 2) {
        if (fits(pixels, chunk)) return found;
      }
    }
  }
  return found;
}

// That cut, in the least memory that it can be had for.
template <class Make>
auto fitting_cut(int channels, int most_chunk, Make&& make) {
  for (const size_t budget : {kSharedBudget, cuda::kMostShared}) {
    if (auto found = find_cut(channels, most_chunk, budget, make)) return *found;
  }
  throw std::runtime_error("mixed operations on CUDA: tiles of " + std::to_string(channels) +
                           " channels do not fit the shared memory of a block; 1024 do (512 in "
                           "float64)");
}

}  // namespace metadnas::mixed_op
