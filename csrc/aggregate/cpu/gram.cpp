// Gram matrix of stacked client tensors about an origin.
#include <torch/csrc/stable/library.h>

#include "aggregate/cpu/inputs.h"
#include "aggregate/cpu/kernels.h"

namespace metadnas {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kOp = "gram";
constexpr int64_t kPartialBytes = 64 * 1024 * 1024;  // partial sums together
constexpr int64_t kMostGroups = 64;

// How many partial sums over columns: by shape alone, so that results do not depend on threads.
int64_t column_groups(int64_t clients) {
  const int64_t fitting =
      kPartialBytes / (clients * clients * static_cast<int64_t>(sizeof(double)));
  return fitting < 1 ? 1 : fitting < kMostGroups ? fitting : kMostGroups;
}

template <class T>
void run(const Tensor& x, const Tensor& origin, Tensor& partial, int64_t groups) {
  aggregate_kernels<T>(widest_isa())
      .gram({clients_of<T>(x), origin.const_data_ptr<T>(),
             static_cast<double*>(partial.mutable_data_ptr()), groups});
}

// x (G, ...), origin (...) -> (G, G) double
Tensor gram(Tensor x, Tensor origin) {
  check_clients(kOp, x);
  check_shape(kOp, "origin", origin, client_sizes(x));
  check_like(kOp, "origin", origin, x);
  const int64_t clients = x.size(0);
  const int64_t groups = column_groups(clients);
  const int64_t sizes[] = {groups, clients, clients};
  Tensor partial = torch::stable::new_empty(x, torch::headeronly::IntHeaderOnlyArrayRef(sizes, 3),
                                            ScalarType::Double);
  const Tensor rows = torch::stable::contiguous(x);
  const Tensor flat = torch::stable::contiguous(origin);
  x.scalar_type() == ScalarType::Float ? run<float>(rows, flat, partial, groups)
                                       : run<double>(rows, flat, partial, groups);
  return torch::stable::clone(torch::stable::select(partial, 0, 0));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) { m.impl("gram", TORCH_BOX(&gram)); }

}  // namespace metadnas
