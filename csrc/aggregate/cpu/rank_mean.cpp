// Mean over ranks of stacked client tensors: coordinate median and trimmed mean.
#include <torch/csrc/stable/library.h>

#include "aggregate/cpu/inputs.h"
#include "aggregate/cpu/kernels.h"

namespace metadnas {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kOp = "rank_mean";

template <class T>
void run(const Tensor& x, int64_t begin, int64_t end, Tensor& out) {
  aggregate_kernels<T>(widest_isa())
      .rank_mean({clients_of<T>(x), begin, end, static_cast<T*>(out.mutable_data_ptr())});
}

// x (G, ...) -> (...)
Tensor rank_mean(Tensor x, int64_t begin, int64_t end) {
  check_clients(kOp, x);
  STD_TORCH_CHECK(0 <= begin && begin < end && end <= x.size(0), kOp, ": ranks are [", begin, ", ",
                  end, "), expected 0 <= begin < end <= ", x.size(0));
  Tensor out = empty_like_clients(x, client_sizes(x));
  const Tensor rows = torch::stable::contiguous(x);
  x.scalar_type() == ScalarType::Float ? run<float>(rows, begin, end, out)
                                       : run<double>(rows, begin, end, out);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) { m.impl("rank_mean", TORCH_BOX(&rank_mean)); }

}  // namespace metadnas
