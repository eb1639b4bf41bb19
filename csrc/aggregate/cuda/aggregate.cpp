// Aggregation over clients on CUDA: scratch memory and launches.
#include <torch/csrc/stable/library.h>

#include "aggregate/cuda/kernels.h"
#include "aggregate/operator.h"
#include "common/cuda/call.h"

namespace metadnas {
namespace {

struct Cuda {
  static constexpr int64_t kGramGroups = 512;

  template <class T>
  static void mean(const Tensor& x, const MeanInputs<T>& in) {
    cuda::Call call(x);
    auto* shares = call.scratch<double>(in.from.clients);
    aggregate_cuda::scale_shares(in.weights, 1, in.from.clients, shares, call.stream());
    const int64_t parts = aggregate_cuda::mean_parts(in.from.clients, in.from.columns);
    double* partial = parts > 1 ? call.scratch<double>(parts * in.from.columns) : nullptr;
    aggregate_cuda::mean(in, shares, parts, partial, call.stream());
  }

  template <class T>
  static void mixtures(const Tensor& x, const MixturesInputs<T>& in) {
    cuda::Call call(x);
    auto* shares = call.scratch<double>(in.mixtures * in.from.clients);
    aggregate_cuda::scale_shares(in.weights, in.mixtures, in.from.clients, shares, call.stream());
    aggregate_cuda::mixtures(in, shares, call.stream());
  }

  template <class T>
  static void rank_mean(const Tensor& x, const RankMeanArgs<T>& args) {
    const cuda::Call call(x);
    aggregate_cuda::rank_mean(args, call.stream());
  }

  template <class T>
  static void gram(const Tensor& x, const GramArgs<T>& args) {
    const cuda::Call call(x);
    aggregate_cuda::gram(args, call.stream());
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(metadnas_ext, METADNAS_CUDA_KEY, m) {
  m.impl("weighted_mean", TORCH_BOX(&weighted_mean<Cuda>));
  m.impl("mixtures", TORCH_BOX(&mixtures<Cuda>));
  m.impl("rank_mean", TORCH_BOX(&rank_mean<Cuda>));
  m.impl("gram", TORCH_BOX(&gram<Cuda>));
}

}  // namespace metadnas
