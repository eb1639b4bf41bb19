// The images of a cohort that count: checks, and zeros for the others.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <optional>

#include "common/checks.h"

namespace metadnas {

// `counts` (G) of `images` images each count; without it all do.
class CountedImages {
 public:
  CountedImages(const char* op, const std::optional<Tensor>& given, int64_t clients, int64_t images)
      : clients_(clients), images_(images) {
    if (!given.has_value()) return;
    check_shape(op, "counts", *given, {clients});
    STD_TORCH_CHECK(given->scalar_type() == torch::headeronly::ScalarType::Long && given->is_cpu(),
                    op, ": counts is not an int64 tensor on the CPU");
    counts_ = torch::stable::contiguous(*given);
    for (int64_t g = 0; g < clients; ++g) {
      STD_TORCH_CHECK(data()[g] >= 0 && data()[g] <= images, op, ": counts[", g, "] is ", data()[g],
                      ", expected 0 to ", images);
    }
  }

  // Per client, or null: all images count.
  const int64_t* data() const {
    return counts_.has_value() ? counts_->const_data_ptr<int64_t>() : nullptr;
  }

  // Of a client that has any: one without images is skipped, not an error.
  int64_t fewest() const {
    int64_t fewest = images_;
    for (int64_t g = 0; data() && g < clients_; ++g) {
      if (data()[g] > 0 && data()[g] < fewest) fewest = data()[g];
    }
    return fewest;
  }

  // Zeros in the images that do not count, which kernels never touch, of `outer` stacked (G, N,
  // ...).
  void zero_rest(Tensor& t, int64_t outer = 1) const {
    if (!counts_.has_value() || outer == 0) return;
    const int64_t image =
        t.numel() / (outer * clients_ * images_) * static_cast<int64_t>(t.element_size());
    char* to = static_cast<char*>(t.mutable_data_ptr());
    for (int64_t row = 0; row < outer * clients_; ++row) {
      const int64_t used = data()[row % clients_];
      std::memset(to + (row * images_ + used) * image, 0,
                  static_cast<size_t>((images_ - used) * image));
    }
  }

 private:
  int64_t clients_;
  int64_t images_;
  std::optional<Tensor> counts_;
};

}  // namespace metadnas
