// Aggregation over clients: the operators' checks, for every device. A device has
// mean(x, inputs), mixtures(x, inputs), rank_mean(x, args), gram(x, args) and kGramGroups.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <vector>

#include "aggregate/args.h"
#include "common/checks.h"

namespace metadnas {

inline void check_clients(const char* op, const Tensor& x) {
  check(x.dim() >= 1 && x.size(0) >= 1, op, ": x has shape ", shape_text(x),
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

// One row of G weights, at least 0 with a positive sum, which is returned; `name` is what the
// errors call the row.
template <class T>
double checked_total(const char* op, const std::string& name, const T* weights, int64_t clients) {
  double total = 0;
  for (int64_t g = 0; g < clients; ++g) {
    const double w = static_cast<double>(weights[g]);
    check(w >= 0 && std::isfinite(w), op, ": ", name, "[", g, "] is ", w,
          ", expected a finite number of at least 0");
    total += w;
  }
  check(total > 0 && std::isfinite(total), op, ": ", name, " sum to ", total,
        ", expected a finite number of more than 0");
  return total;
}

// x (G, ...), weights (G) -> (...)
template <class Device>
Tensor weighted_mean(Tensor x, Tensor weights) {
  constexpr const char* kOp = "weighted_mean";
  check_clients(kOp, x);
  check_shape(kOp, "weights", weights, {x.size(0)});
  check_like(kOp, "weights", weights, x);
  Tensor out = empty_like_clients(x, client_sizes(x));
  const Tensor rows = torch::stable::contiguous(x);
  const Tensor flat = torch::stable::contiguous(weights);
  with_element_type(x, [&]<class T>() {
    const T* values = flat.const_data_ptr<T>();
    // Reading them elsewhere would stall the device: there, weights that are wrong give NaN.
    if (flat.is_cpu()) checked_total(kOp, "weights", values, x.size(0));
    Device::mean(
        rows, MeanInputs<T>{clients_of<T>(rows), values, static_cast<T*>(out.mutable_data_ptr())});
  });
  return out;
}

// x (G, ...), weights (M, G) -> (M, ...)
template <class Device>
Tensor mixtures(Tensor x, Tensor weights) {
  constexpr const char* kOp = "mixtures";
  check_clients(kOp, x);
  const int64_t clients = x.size(0);
  check(weights.dim() == 2 && weights.size(1) == clients, kOp, ": weights has shape ",
        shape_text(weights), ", expected (M, ", clients, ")");
  check_like(kOp, "weights", weights, x);
  Tensor out = empty_like_clients(x, client_sizes(x, {weights.size(0)}));
  const Tensor rows = torch::stable::contiguous(x);
  const Tensor flat = torch::stable::contiguous(weights);
  with_element_type(x, [&]<class T>() {
    const T* values = flat.const_data_ptr<T>();
    for (int64_t m = 0; flat.is_cpu() && m < weights.size(0); ++m) {
      checked_total(kOp, "weights[" + std::to_string(m) + "]", values + m * clients, clients);
    }
    Device::mixtures(rows, MixturesInputs<T>{clients_of<T>(rows), values, weights.size(0),
                                             static_cast<T*>(out.mutable_data_ptr())});
  });
  return out;
}

// x (G, ...) -> (...)
template <class Device>
Tensor rank_mean(Tensor x, int64_t begin, int64_t end) {
  constexpr const char* kOp = "rank_mean";
  check_clients(kOp, x);
  check(0 <= begin && begin < end && end <= x.size(0), kOp, ": ranks are [", begin, ", ", end,
        "), expected 0 <= begin < end <= ", x.size(0));
  Tensor out = empty_like_clients(x, client_sizes(x));
  const Tensor rows = torch::stable::contiguous(x);
  with_element_type(x, [&]<class T>() {
    Device::rank_mean(rows, RankMeanArgs<T>{clients_of<T>(rows), begin, end,
                                            static_cast<T*>(out.mutable_data_ptr())});
  });
  return out;
}

// x (G, ...), origin (...) -> (G, G) double
template <class Device>
Tensor gram(Tensor x, Tensor origin) {
  constexpr const char* kOp = "gram";
  constexpr int64_t kPartialBytes = 64 * 1024 * 1024;  // partial sums together
  check_clients(kOp, x);
  check_shape(kOp, "origin", origin, client_sizes(x));
  check_like(kOp, "origin", origin, x);
  const int64_t clients = x.size(0);
  // By shape alone: results depend neither on threads nor on the device's size.
  const int64_t fitting =
      kPartialBytes / (clients * clients * static_cast<int64_t>(sizeof(double)));
  const int64_t groups = fitting < 1                     ? 1
                         : fitting < Device::kGramGroups ? fitting
                                                         : Device::kGramGroups;
  const int64_t sizes[] = {groups, clients, clients};
  Tensor partial = torch::stable::new_empty(x, torch::headeronly::IntHeaderOnlyArrayRef(sizes, 3),
                                            torch::headeronly::ScalarType::Double);
  const Tensor rows = torch::stable::contiguous(x);
  const Tensor flat = torch::stable::contiguous(origin);
  with_element_type(x, [&]<class T>() {
    Device::gram(rows, GramArgs<T>{clients_of<T>(rows), flat.const_data_ptr<T>(),
                                   static_cast<double*>(partial.mutable_data_ptr()), groups});
  });
  return torch::stable::clone(torch::stable::select(partial, 0, 0));
}

}  // namespace metadnas
