// Weighted mean of stacked client tensors.
#include <torch/csrc/stable/library.h>

#include "aggregate/cpu/inputs.h"
#include "aggregate/cpu/kernels.h"

namespace metadnas {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kOp = "weighted_mean";

template <class T>
void run(const Tensor& x, const Tensor& weights, Tensor& out) {
  const Clients<T> from = clients_of<T>(x);
  std::vector<double> share(static_cast<size_t>(from.clients));
  scale_shares(kOp, "weights", weights.const_data_ptr<T>(), from.clients, share.data());
  // 0 * NaN is NaN: a client of weight 0 must not reach the result.
  std::vector<const T*> rows;
  std::vector<double> counting;
  for (int64_t g = 0; g < from.clients; ++g) {
    if (share[g] == 0) continue;
    rows.push_back(from.row(g));
    counting.push_back(share[g]);
  }
  aggregate_kernels<T>(widest_isa())
      .mean({rows.data(), counting.data(), static_cast<int64_t>(rows.size()), from.columns,
             static_cast<T*>(out.mutable_data_ptr())});
}

// x (G, ...), weights (G) -> (...)
Tensor weighted_mean(Tensor x, Tensor weights) {
  check_clients(kOp, x);
  check_shape(kOp, "weights", weights, {x.size(0)});
  check_like(kOp, "weights", weights, x);
  Tensor out = empty_like_clients(x, client_sizes(x));
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
