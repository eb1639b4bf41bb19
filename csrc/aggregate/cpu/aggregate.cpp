// Aggregation over clients on the CPU: shares, dispatch to the kernels of this processor.
#include <torch/csrc/stable/library.h>

#include "aggregate/cpu/kernels.h"
#include "aggregate/operator.h"

namespace metadnas {
namespace {

// One row of G weights scaled to sum to 1.
template <class T>
void scale_shares(const T* weights, int64_t clients, double* share) {
  double total = 0;
  for (int64_t g = 0; g < clients; ++g) total += static_cast<double>(weights[g]);
  for (int64_t g = 0; g < clients; ++g) share[g] = static_cast<double>(weights[g]) / total;
}

struct Cpu {
  static constexpr int64_t kGramGroups = 64;

  template <class T>
  static void mean(const Tensor&, const MeanInputs<T>& in) {
    std::vector<double> share(static_cast<size_t>(in.from.clients));
    scale_shares(in.weights, in.from.clients, share.data());
    // 0 * NaN is NaN: a client of weight 0 must not reach the result.
    std::vector<const T*> rows;
    std::vector<double> counting;
    for (int64_t g = 0; g < in.from.clients; ++g) {
      if (share[g] == 0) continue;
      rows.push_back(in.from.row(g));
      counting.push_back(share[g]);
    }
    aggregate_kernels<T>(widest_isa())
        .mean({rows.data(), counting.data(), static_cast<int64_t>(rows.size()), in.from.columns,
               in.out});
  }

  template <class T>
  static void mixtures(const Tensor&, const MixturesInputs<T>& in) {
    const int64_t clients = in.from.clients;
    std::vector<double> shares(static_cast<size_t>(in.mixtures * clients));
    for (int64_t m = 0; m < in.mixtures; ++m) {
      scale_shares(in.weights + m * clients, clients, shares.data() + m * clients);
    }
    aggregate_kernels<T>(widest_isa()).mixtures({in.from, shares.data(), in.mixtures, in.out});
  }

  template <class T>
  static void rank_mean(const Tensor&, const RankMeanArgs<T>& args) {
    aggregate_kernels<T>(widest_isa()).rank_mean(args);
  }

  template <class T>
  static void gram(const Tensor&, const GramArgs<T>& args) {
    aggregate_kernels<T>(widest_isa()).gram(args);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, CPU, m) {
  m.impl("weighted_mean", TORCH_BOX(&weighted_mean<Cpu>));
  m.impl("mixtures", TORCH_BOX(&mixtures<Cpu>));
  m.impl("rank_mean", TORCH_BOX(&rank_mean<Cpu>));
  m.impl("gram", TORCH_BOX(&gram<Cpu>));
}

}  // namespace metadnas
