// The forward pass: stages A, B and C with the batch norms settled between them.
#include "mixed_op/cuda/fan.h"
#include "mixed_op/cuda/passes.h"

namespace metadnas::mixed_op {
namespace {

// Moments of both pools by the tiles of `tiles`.
template <class T, class S>
void measure_pools(const Fan<T, S>& fan, const Tiles& tiles, T* moments) {
  if (!fan.plan.pools()) return;
  const PoolMomentsParams<S> p{fan.frame,
                               fan.pool_shape(),
                               tiles,
                               make_divisor(pool_chunk(fan.geometry.channels)),
                               fan.args.x,
                               fan.plan.partials,
                               fan.pool_partial(&Edge::max_pool),
                               fan.pool_partial(&Edge::avg_pool),
                               moments};
  pool_moments(p, fan.vector(), fan.call.stream());
}

template <class T, class S>
void combine_edges(const Fan<T, S>& fan, const MixedOpForward<T, S>& args) {
  const WalkCut walk = cut_combine(fan.geometry, fan.vector());
  for_slices(fan.edges(), EdgesParams<S>::kMostEdges, [&](int begin, int end) {
    EdgesParams<S> p = fan.edges_params(begin, end, walk);
    for (int e = begin; e < end; ++e) {
      p.edge[e - begin].out = args.out[static_cast<size_t>(e)].images;
      p.edge[e - begin].add = args.out[static_cast<size_t>(e)].add;
    }
    combine(p, fan.vector(), fan.call.stream());
  });
}

}  // namespace

template <class T, class S>
void forward_pass(const torch::stable::Tensor& x, const MixedOpForward<T, S>& args) {
  cuda::Call call(x);
  Fan<T, S> fan(args, call);
  for (const auto& out : args.out) fan.take_alignment(out.images);
  const int firsts = fan.firsts(), units = fan.units();
  const auto is_second = [&](int norm) {
    return std::any_of(fan.plan.units.begin() + firsts, fan.plan.units.end(),
                       [&](const Unit& unit) { return unit.norm == norm; });
  };
  const ConvolveCut first = fan.cut(0, firsts);
  T* moments = args.training ? fan.make_moments(first.tiles) : nullptr;
  fan.convolve_units(0, firsts, first, moments, false);
  if (args.training) measure_pools(fan, first.tiles, moments);
  fan.settle(first.tiles, moments, [&](int norm) { return !args.training || !is_second(norm); });
  if (firsts < units) {
    const ConvolveCut second = fan.cut(firsts, units);
    if (args.training) moments = fan.make_moments(second.tiles);
    fan.convolve_units(firsts, units, second, moments, false);
    if (args.training) fan.settle(second.tiles, moments, is_second);
  }
  combine_edges(fan, args);
}

template void forward_pass(const torch::stable::Tensor&, const MixedOpForward<float>&);
template void forward_pass(const torch::stable::Tensor&, const MixedOpForward<double>&);
template void forward_pass(const torch::stable::Tensor&,
                           const MixedOpForward<float, __nv_bfloat16>&);
template void forward_pass(const torch::stable::Tensor&, const MixedOpForward<float, __half>&);

}  // namespace metadnas::mixed_op
