// Several weighted means of the same stacked client tensors.
#include <torch/csrc/stable/library.h>

#include "aggregate/cpu/inputs.h"
#include "aggregate/cpu/kernels.h"

namespace metadnas {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kOp = "mixtures";

template <class T>
void run(const Tensor& x, const Tensor& weights, Tensor& out) {
  const int64_t mixtures = weights.size(0);
  const int64_t clients = weights.size(1);
  std::vector<double> shares(static_cast<size_t>(mixtures * clients));
  for (int64_t m = 0; m < mixtures; ++m) {
    scale_shares(kOp, "weights[" + std::to_string(m) + "]",
                 weights.const_data_ptr<T>() + m * clients, clients, shares.data() + m * clients);
  }
  aggregate_kernels<T>(widest_isa())
      .mixtures(
          {clients_of<T>(x), shares.data(), mixtures, static_cast<T*>(out.mutable_data_ptr())});
}

// x (G, ...), weights (M, G) -> (M, ...)
Tensor mixtures(Tensor x, Tensor weights) {
  check_clients(kOp, x);
  STD_TORCH_CHECK(weights.dim() == 2 && weights.size(1) == x.size(0), kOp, ": weights has shape ",
                  shape_text(weights), ", expected (M, ", x.size(0), ")");
  check_like(kOp, "weights", weights, x);
  Tensor out = empty_like_clients(x, client_sizes(x, {weights.size(0)}));
  const Tensor rows = torch::stable::contiguous(x);
  const Tensor flat = torch::stable::contiguous(weights);
  x.scalar_type() == ScalarType::Float ? run<float>(rows, flat, out) : run<double>(rows, flat, out);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) { m.impl("mixtures", TORCH_BOX(&mixtures)); }

}  // namespace metadnas
