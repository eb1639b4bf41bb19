// The images of a cohort that count: checks, and zeros for the others.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstring>
#include <optional>

#include "common/checks.h"

namespace metadnas {

// `counts` (G) of x's N images each count, x (G, N, ...); without it all do. Values are looked at
// only on the CPU: elsewhere kernels clip them to 0 to N, as reading them would stall the device.
class CountedImages {
 public:
  CountedImages(const char* op, const std::optional<Tensor>& given, const Tensor& x)
      : clients_(x.size(0)), images_(x.size(1)) {
    if (!given.has_value()) return;
    check_shape(op, "counts", *given, {clients_});
    check(given->scalar_type() == torch::headeronly::ScalarType::Long && same_device(*given, x), op,
          ": counts is not int64 on the device of x");
    counts_ = torch::stable::contiguous(*given);
    readable_ = counts_->is_cpu();
    for (int64_t g = 0; readable_ && g < clients_; ++g) {
      check(data()[g] >= 0 && data()[g] <= images_, op, ": counts[", g, "] is ", data()[g],
            ", expected 0 to ", images_);
    }
  }

  // Per client, or null: all images count.
  const int64_t* data() const {
    return counts_.has_value() ? counts_->const_data_ptr<int64_t>() : nullptr;
  }

  // Of a client that has any: one without images is skipped, not an error. All N where the counts
  // are not known.
  int64_t fewest() const {
    int64_t fewest = images_;
    for (int64_t g = 0; readable_ && g < clients_; ++g) {
      if (data()[g] > 0 && data()[g] < fewest) fewest = data()[g];
    }
    return fewest;
  }

  // Zeros in the images that do not count, which the CPU's kernels never touch, of `outer` stacked
  // (G, N, ...).
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
  bool readable_ = false;
  std::optional<Tensor> counts_;
};

}  // namespace metadnas
