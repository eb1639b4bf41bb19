// Weighted mean of stacked client tensors: one pass over the data, in client order, whatever the
// number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <vector>

#include "common/checks.h"
#include "common/parallel.h"

namespace metadnas {
namespace {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;

constexpr const char* kOp = "weighted_mean";
constexpr int64_t kColumns = 2048;  // a strip of the result that stays in the first-level cache

// x: (G, P); share: (G), sums to 1.
template <class T>
void mean_columns(const T* x, const double* share, int64_t clients, int64_t columns, int64_t begin,
                  T* out) {
  const int64_t width = columns - begin < kColumns ? columns - begin : kColumns;
  double total[kColumns];
  for (int64_t c = 0; c < width; ++c) total[c] = 0;
  for (int64_t g = 0; g < clients; ++g) {
    const T* row = x + g * columns + begin;
    const double s = share[g];
    // 0 * NaN is NaN: a client of weight 0 must not reach the result.
    if (s == 0) continue;
    for (int64_t c = 0; c < width; ++c) total[c] += s * static_cast<double>(row[c]);
  }
  for (int64_t c = 0; c < width; ++c) out[begin + c] = static_cast<T>(total[c]);
}

template <class T>
std::vector<double> shares(const T* weights, int64_t clients) {
  double total = 0;
  for (int64_t g = 0; g < clients; ++g) {
    const double w = static_cast<double>(weights[g]);
    STD_TORCH_CHECK(w >= 0 && std::isfinite(w), kOp, ": weights[", g, "] is ", w,
                    ", expected a finite number of at least 0");
    total += w;
  }
  STD_TORCH_CHECK(total > 0 && std::isfinite(total), kOp, ": weights sum to ", total,
                  ", expected a finite number of more than 0");
  std::vector<double> share(static_cast<size_t>(clients));
  for (int64_t g = 0; g < clients; ++g) {
    share[static_cast<size_t>(g)] = static_cast<double>(weights[g]) / total;
  }
  return share;
}

template <class T>
void run(const Tensor& x, const Tensor& weights, Tensor& out) {
  const int64_t clients = x.size(0);
  const int64_t columns = x.numel() / clients;
  const std::vector<double> share = shares(weights.const_data_ptr<T>(), clients);
  const T* from = x.const_data_ptr<T>();
  T* to = static_cast<T*>(out.mutable_data_ptr());
  parallel_for_each((columns + kColumns - 1) / kColumns, [&](int64_t i) {
    mean_columns(from, share.data(), clients, columns, i * kColumns, to);
  });
}

Tensor weighted_mean(Tensor x, Tensor weights) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.size(0) >= 1, kOp, ": x has shape ", shape_text(x),
                  ", expected (G, ...) with G of at least 1");
  check_floating(kOp, "x", x);
  check_shape(kOp, "weights", weights, {x.size(0)});
  check_like(kOp, "weights", weights, x);
  std::vector<int64_t> sizes;
  for (int64_t d = 1; d < x.dim(); ++d) sizes.push_back(x.size(d));
  Tensor out = torch::stable::new_empty(x, IntHeaderOnlyArrayRef(sizes.data(), sizes.size()));
  const Tensor rows = torch::stable::contiguous(x);
  const Tensor flat = torch::stable::contiguous(weights);
  x.scalar_type() == ScalarType::Float ? run<float>(rows, flat, out) : run<double>(rows, flat, out);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("weighted_mean", TORCH_BOX(&weighted_mean));
}

}  // namespace metadnas
