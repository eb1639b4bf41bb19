// The edges that leave one source, as the host sees them: a plan's units and norms turned into the
// parameters of kernels. Shared by both passes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "common/cuda/call.h"
#include "mixed_op/cuda/convolve.h"
#include "mixed_op/cuda/edges.h"
#include "mixed_op/cuda/norms.h"
#include "mixed_op/cuda/pools.h"

namespace metadnas::mixed_op {

// Calls run(begin, end) for slices of at most `most` of `count`.
template <class Run>
void for_slices(int count, int most, Run&& run) {
  for (int begin = 0; begin < count; begin += most) run(begin, std::min(begin + most, count));
}

template <class T, class S>
class Fan {
 public:
  Fan(const MixedOpArgs<T, S>& args, cuda::Call& call)
      : args(args), plan(args.plan), geometry(args.geometry), call(call) {
    const int norms = static_cast<int>(plan.norms.size());
    frame = {geometry.clients, geometry.images,    args.counts,  geometry.channels,   norms,
             args.params,      args.params_stride, args.weights, args.weights_stride, nullptr,
             nullptr};
    frame.vectors = call.scratch<T>(geometry.clients * norms * kNormRows * geometry.channels);
    transient_ = call.scratch<S>(plan.transients * result_size());
    vector_ = geometry.channels % 4 == 0 ? 4 : 1;
    take_alignment(args.x);
    take_alignment(Images<S>{args.z, geometry.channels, 0});
  }

  const MixedOpArgs<T, S>& args;
  const Plan& plan;
  const Geometry& geometry;
  cuda::Call& call;
  Frame<S> frame;

  // Channels that may be read and written together, for all images that have been taken.
  int vector() const { return vector_; }
  template <class U>
  void take_alignment(const Images<U>& images) {
    constexpr uintptr_t kBytes = std::min(4 * sizeof(S), size_t{16});
    if (reinterpret_cast<uintptr_t>(images.data) % kBytes != 0) vector_ = 1;
    if (images.pitch % 4 != 0 || images.image % 4 != 0) vector_ = 1;
  }

  int units() const { return static_cast<int>(plan.units.size()); }
  int firsts() const { return plan.first_half_units(); }
  int edges() const { return static_cast<int>(plan.edges.size()); }
  int64_t result_size() const {  // of one unit
    return geometry.clients * geometry.images * geometry.out_pixels() * geometry.channels;
  }
  S* z(const Unit& unit) const {
    return unit.kept != kAbsent ? args.z + unit.kept * result_size()
                                : transient_ + unit.transient * result_size();
  }
  Source<S> source(const Unit& unit) const {
    if (unit.source == kFromInput) return {args.x, kAbsent};
    const Unit& first = plan.units[unit.source];
    const int64_t image = geometry.out_pixels() * geometry.channels;
    return {{z(first), geometry.channels, image}, first.norm};
  }

  // First or second halves, units [begin, end), read images of this size at this stride.
  struct Input {
    int height;
    int width;
    int stride;
    int reach;  // pixels that a kernel extends to each side
  };
  Input input(int begin, int end) const {
    int reach = 1;
    for (int u = begin; u < end; ++u) {
      reach = std::max(reach, (plan.units[u].kernel - 1) / 2 * plan.units[u].dilation);
    }
    if (begin > 0) return {geometry.out_height, geometry.out_width, 1, reach};  // second halves
    return {geometry.height, geometry.width, geometry.stride, reach};
  }
  PoolShape pool_shape() const { return {geometry.height, geometry.width, geometry.stride}; }

  // Partial moments of a pool, or kAbsent.
  int pool_partial(Pool Edge::* pool) const {
    for (const Edge& edge : plan.edges) {
      if ((edge.*pool).present()) return plan.norms[(edge.*pool).norm].partial;
    }
    return kAbsent;
  }

  // Results of units [begin, end); moments null: not wanted. Units that are kept are left out if
  // only the others are `missing`.
  void convolve_units(int begin, int end, const ConvolveCut& cut, T* moments, bool missing) const {
    std::vector<int> chosen;
    for (int u = begin; u < end; ++u) {
      if (!missing || plan.units[u].kept == kAbsent) chosen.push_back(u);
    }
    const int count = static_cast<int>(chosen.size());
    for_slices(count, ConvolveParams<S>::kMostUnits, [&](int first, int last) {
      const Input in = input(begin, end);
      ConvolveParams<S> p{frame, cut,           in.height, in.width, last - first,
                          1,     plan.partials, moments,   {}};
      for (int i = first; i < last; ++i) {
        const Unit& unit = plan.units[chosen[static_cast<size_t>(i)]];
        p.unit[i - first] = {unit.kernel,   unit.dilation, plan.norms[unit.norm].partial,
                             source(unit),  z(unit),       unit.depthwise,
                             unit.pointwise};
      }
      p.units_per_block = units_per_block(p);
      convolve(p, vector(), call.stream());
    });
  }

  ConvolveCut cut(int begin, int end) const {
    const Input in = input(begin, end);
    return cut_convolve(geometry, in.stride, in.reach, vector(), sizeof(T));
  }

  T* make_moments(const Tiles& tiles) const {
    return call.scratch<T>(geometry.clients * geometry.images * tiles.count() * plan.partials * 2 *
                           geometry.channels);
  }

  // Vectors, and in training statistics, of the norms that `wanted` selects.
  template <class Wanted>
  void settle(const Tiles& tiles, const T* moments, Wanted&& wanted) const {
    std::vector<NormTask> tasks;
    for (int n = 0; n < frame.norms; ++n) {
      const Norm& norm = plan.norms[n];
      if (wanted(n)) tasks.push_back({n, norm.partial, norm.slot, norm.affine});
    }
    for_slices(static_cast<int>(tasks.size()), SettleParams<S>::kMostTasks, [&](int b, int e) {
      SettleParams<S> p{frame,
                        tiles,
                        args.eps,
                        args.stats,
                        args.stats_stride,
                        plan.partials,
                        moments,
                        norm_width(geometry.channels),
                        e - b,
                        {}};
      std::copy(tasks.begin() + b, tasks.begin() + e, p.task);
      settle_norms(p, call.stream());
    });
  }

  EdgeTerms<S> terms(int edge) const {
    EdgeTerms<S> t{};
    const Edge& e = plan.edges[edge];
    for (const Unit& unit : plan.units) {
      if (unit.edge != edge || unit.intermediate()) continue;
      t.unit[t.units++] = {{unit.norm, unit.weight}, z(unit)};
    }
    if (e.max_pool.present()) t.max_pool = {e.max_pool.norm, e.max_pool.weight};
    if (e.avg_pool.present()) t.avg_pool = {e.avg_pool.norm, e.avg_pool.weight};
    t.identity = e.identity;
    return t;
  }

  // Of edges [begin, end); without what only one of the two kernels reads.
  EdgesParams<S> edges_params(int begin, int end, const WalkCut& walk) const {
    EdgesParams<S> p{};
    p.frame = frame;
    p.shape = pool_shape();
    p.out_height = geometry.out_height;
    p.out_width = geometry.out_width;
    p.x = args.x;
    p.pools = plan.pools();
    p.walk = walk;
    p.edges = end - begin;
    for (int e = begin; e < end; ++e) p.edge[e - begin].terms = terms(e);
    return p;
  }

 private:
  // Units that read the same window are made by one block, unless that leaves too few blocks.
  int units_per_block(const ConvolveParams<S>& p) const {
    constexpr int64_t kEnoughBlocks = 528;  // four for each multiprocessor of a large GPU
    if (p.cut.chunk < geometry.channels || p.unit[0].source.norm != kAbsent) return 1;
    const int64_t blocks = geometry.clients * geometry.images * p.cut.tiles.count();
    const int64_t groups =
        std::clamp(ceil_div(kEnoughBlocks, blocks), int64_t{1}, int64_t{p.units});
    return static_cast<int>(ceil_div(int64_t{p.units}, groups));
  }

  int vector_;
  S* transient_;
};

}  // namespace metadnas::mixed_op
