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
  std::vector<double> share(static_cast<size_t>(x.size(0)));
  scale_shares(kOp, "weights", weights.const_data_ptr<T>(), x.size(0), share.data());
  aggregate_kernels().of<T>().mean(
      {clients_of<T>(x), share.data(), static_cast<T*>(out.mutable_data_ptr())});
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
