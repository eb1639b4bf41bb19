// Checks and views that the aggregation operators share.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <vector>

#include "aggregate/args.h"
#include "common/checks.h"

namespace metadnas {

inline void check_clients(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(0) >= 1, op, ": x has shape ", shape_text(x),
                  ", expected (G, ...) with G of at least 1");
  check_floating(op, "x", x);
}

// The shape of one client, behind `leading` sizes.
inline std::vector<int64_t> client_sizes(const Tensor& x, std::vector<int64_t> leading = {}) {
  for (int64_t d = 1; d < x.dim(); ++d) leading.push_back(x.size(d));
  return leading;
}

inline Tensor empty_like_clients(const Tensor& x, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(
      x, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
}

// x is contiguous.
template <class T>
Clients<T> clients_of(const Tensor& x) {
  return {x.const_data_ptr<T>(), x.size(0), x.numel() / x.size(0)};
}

// One row of G weights scaled to sum to 1; `name` is what the errors call the row.
template <class T>
void scale_shares(const char* op, const std::string& name, const T* weights, int64_t clients,
                  double* share) {
  double total = 0;
  for (int64_t g = 0; g < clients; ++g) {
    const double w = static_cast<double>(weights[g]);
    STD_TORCH_CHECK(w >= 0 && std::isfinite(w), op, ": ", name, "[", g, "] is ", w,
                    ", expected a finite number of at least 0");
    total += w;
  }
  STD_TORCH_CHECK(total > 0 && std::isfinite(total), op, ": ", name, " sum to ", total,
                  ", expected a finite number of more than 0");
  for (int64_t g = 0; g < clients; ++g) share[g] = static_cast<double>(weights[g]) / total;
}

}  // namespace metadnas
