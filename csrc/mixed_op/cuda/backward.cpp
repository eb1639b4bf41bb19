// The backward pass: sums, second halves, first halves and pools, weight gradients.
#include "mixed_op/cuda/fan.h"
#include "mixed_op/cuda/passes.h"
#include "mixed_op/cuda/reduce.h"
#include "mixed_op/cuda/spread.h"
#include "mixed_op/cuda/unit_gradient.h"

namespace metadnas::mixed_op {
namespace {

template <class T, class S>
class Backward {
 public:
  Backward(const MixedOpBackward<T, S>& args, cuda::Call& call)
      : args_(args),
        call_(call),
        fan_(args, call),
        geometry_(args.geometry),
        units_(args.plan.units) {
    constexpr int kMostEdges = PoolGradientParams<S>::kMostEdges;
    if (fan_.edges() > kMostEdges) {
      throw std::runtime_error("mixed operations on CUDA: " + std::to_string(fan_.edges()) +
                               " edges leave one state, expected at most " +
                               std::to_string(kMostEdges));
    }
    for (const auto& grad : args.grad_out) fan_.take_alignment(grad);
    if (args.base.present()) fan_.take_alignment(args.base);
    if (args.grad_x.present()) fan_.take_alignment(args.grad_x);
    fan_.frame.gradients =
        call.scratch<T>(geometry_.clients * fan_.frame.norms * kGradientRows * geometry_.channels);
    firsts_ = fan_.firsts();
    seconds_ = fan_.units() - firsts_;
  }

  void run() {
    fan_.settle(Tiles{}, nullptr, [](int) { return true; });
    remake();
    close_candidates();
    if (args_.grad_params == nullptr && !args_.grad_x.present()) return;
    const int slots = std::max(seconds_, grad_d_slots());
    grad_d_ = call_.template scratch<S>(slots * fan_.result_size());
    if (seconds_ > 0) {
      middle_ = call_.template scratch<S>(seconds_ * fan_.result_size());
      gradients_of(firsts_, fan_.units(), true);
      spread_middles();
    }
    gradients_of(0, firsts_, args_.grad_x.present());
    if (args_.grad_x.present()) spread_inputs();
  }

 private:
  // Results that the forward pass did not keep.
  void remake() const {
    if (args_.plan.transients == 0) return;
    if (firsts_ > 0) fan_.convolve_units(0, firsts_, fan_.cut(0, firsts_), nullptr, true);
    if (seconds_ == 0) return;
    const int units = fan_.units();
    fan_.convolve_units(firsts_, units, fan_.cut(firsts_, units), nullptr, true);
  }

  // Rows of the sums: a norm's, then an edge's two.
  int grad_row(int edge) const { return fan_.frame.norms + 2 * edge; }

  void close_candidates() {
    const WalkCut walk = cut_sums(geometry_, fan_.vector());
    const int rows = grad_row(fan_.edges());
    T* sums = call_.template scratch<T>(geometry_.clients * geometry_.images * walk.pieces * rows *
                                        geometry_.channels);
    for_slices(fan_.edges(), EdgesParams<S>::kMostEdges, [&](int begin, int end) {
      EdgesParams<S> p = fan_.edges_params(begin, end, walk);
      p.rows = rows;
      p.sums = sums;
      for (int e = begin; e < end; ++e) {
        p.edge[e - begin].grad = args_.grad_out[static_cast<size_t>(e)];
        p.edge[e - begin].grad_row = grad_row(e);
      }
      gradient_sums(p, fan_.vector(), call_.stream());
    });
    std::vector<CloseTask> tasks;
    for (int e = 0; e < fan_.edges(); ++e) add_tasks(e, tasks);
    close(tasks, sums, walk.pieces, rows);
  }

  // One for each mixing weight of an edge.
  void add_tasks(int e, std::vector<CloseTask>& tasks) const {
    const EdgeTerms<S> terms = fan_.terms(e);
    const auto add = [&](const TermAt& at) {
      if (at.norm == kAbsent) return;
      tasks.push_back({at.norm, grad_row(e), at.norm, at.weight, args_.plan.norms[at.norm].affine});
    };
    for (int u = 0; u < terms.units; ++u) add(terms.unit[u].at);
    add(terms.max_pool);
    add(terms.avg_pool);
    if (terms.identity != kAbsent) {
      tasks.push_back({kAbsent, grad_row(e), grad_row(e) + 1, terms.identity, kAbsent});
    }
    for (const int64_t weight : args_.plan.edges[e].all_weights) {
      const auto has = [&](const CloseTask& task) { return task.weight == weight; };
      if (std::none_of(tasks.begin(), tasks.end(), has)) {
        tasks.push_back({kAbsent, kAbsent, kAbsent, weight, kAbsent});  // of `none`
      }
    }
  }

  void close(const std::vector<CloseTask>& tasks, const T* sums, int pieces, int rows) const {
    for_slices(static_cast<int>(tasks.size()), CloseParams<S>::kMostTasks, [&](int begin, int end) {
      CloseParams<S> p{fan_.frame,
                       geometry_.out_pixels(),
                       args_.training,
                       pieces,
                       rows,
                       sums,
                       args_.grad_weights,
                       args_.grad_params,
                       args_.grad_params_stride,
                       norm_width(geometry_.channels),
                       end - begin,
                       {}};
      std::copy(tasks.begin() + begin, tasks.begin() + end, p.task);
      close_norms(p, call_.stream());
    });
  }

  // Where a unit's grad_d is: second halves are done with theirs when the first ones begin.
  S* grad_d(int unit) const {
    int slot = unit >= firsts_ ? unit - firsts_ : 0;
    for (int u = 0; unit < firsts_ && u < unit; ++u) slot += units_[u].factorized() ? 2 : 1;
    return grad_d_ + slot * fan_.result_size();
  }
  int grad_d_slots() const {
    int slots = 0;
    for (int u = 0; u < firsts_; ++u) slots += units_[u].factorized() ? 2 : 1;
    return slots;
  }

  // The gradient that reaches a unit's batch norm.
  Images<const S> grad_of(int unit) const {
    for (int v = firsts_; v < fan_.units(); ++v) {
      if (units_[v].source != unit) continue;
      return {middle(v), geometry_.channels, geometry_.out_pixels() * geometry_.channels};
    }
    return args_.grad_out[static_cast<size_t>(units_[unit].edge)];
  }
  S* middle(int second) const { return middle_ + (second - firsts_) * fan_.result_size(); }

  int64_t weight_count(const Unit& unit) const {
    return int64_t{geometry_.channels} * (geometry_.channels + unit.kernel * unit.kernel);
  }

  // grad_d and weight gradients of units [begin, end).
  void gradients_of(int begin, int end, bool need_input) const {
    if (begin == end || (!need_input && args_.grad_params == nullptr)) return;
    const auto in = fan_.input(begin, end);
    const GradientCut cut = cut_gradient(geometry_, in.stride, in.reach, fan_.vector(), sizeof(T));
    int64_t row = 0;
    for (int u = begin; u < end; ++u) row += weight_count(units_[u]);
    T* weight_grads = nullptr;
    if (args_.grad_params != nullptr) {
      weight_grads = call_.template scratch<T>(geometry_.clients * cut.spans * row);
    }
    int64_t at = 0;
    for_slices(end - begin, GradientParams<S>::kMostUnits, [&](int first, int last) {
      GradientParams<S> p{fan_.frame,   cut, in.height,    in.width,
                          weight_grads, row, last - first, {}};
      for (int i = first; i < last; ++i) {
        const int u = begin + i;
        const Unit& unit = units_[u];
        p.unit[i - first] = {unit.kernel,
                             unit.dilation,
                             unit.norm,
                             fan_.source(unit),
                             fan_.z(unit),
                             grad_of(u),
                             unit.depthwise,
                             unit.pointwise,
                             need_input ? grad_d(u) : nullptr,
                             at};
        at += weight_count(unit);
      }
      unit_gradient(p, fan_.vector(), call_.stream());
    });
    if (weight_grads != nullptr) reduce(begin, end, weight_grads, cut.spans, row);
  }

  void reduce(int begin, int end, const T* weight_grads, int64_t spans, int64_t row) const {
    const int64_t matrix = int64_t{geometry_.channels} * geometry_.channels;
    std::vector<WeightGradPiece> pieces;
    int64_t at = 0;
    for (int u = begin; u < end; ++u) {
      const Unit& unit = units_[u];
      const int64_t taps = weight_count(unit) - matrix;
      pieces.push_back({at, unit.pointwise, matrix});
      if (taps > 0) pieces.push_back({at + matrix, unit.depthwise, taps});
      at += matrix + taps;
    }
    const int count = static_cast<int>(pieces.size());
    for_slices(count, ReduceParams<T>::kMostPieces, [&](int first, int last) {
      ReduceParams<T> p{
          weight_grads, spans, row, geometry_.clients, args_.grad_params, args_.grad_params_stride,
          last - first, {}};
      std::copy(pieces.begin() + first, pieces.begin() + last, p.piece);
      reduce_weight_grads(p, call_.stream());
    });
  }

  SpreadParams<S> spread_params(const typename Fan<T, S>::Input& in) const {
    return {fan_.frame, cut_spread(in.height, in.width, geometry_.channels, in.reach, sizeof(T)),
            in.stride, geometry_.out_height, geometry_.out_width};
  }
  SpreadUnit<S> spread_unit(int u) const {
    return {units_[u].kernel, units_[u].dilation, units_[u].depthwise, grad_d(u)};
  }

  // To the batch norms between the halves of separable convolutions.
  void spread_middles() const {
    const SpreadParams<S> common = spread_params(fan_.input(firsts_, fan_.units()));
    const int tiles = common.cut.tiles.count(), rows = 2 * seconds_;
    T* sums = call_.template scratch<T>(geometry_.clients * geometry_.images * tiles * rows *
                                        geometry_.channels);
    std::vector<CloseTask> tasks;
    for_slices(seconds_, SpreadMiddleParams<S>::kMostUnits, [&](int begin, int end) {
      SpreadMiddleParams<S> p{common, rows, sums, end - begin, {}};
      for (int i = begin; i < end; ++i) {
        const int u = firsts_ + i;
        const Unit& first = units_[units_[u].source];
        p.unit[i - begin] = {spread_unit(u), first.norm, fan_.z(first), middle(u), 2 * i};
        tasks.push_back(
            {first.norm, 2 * i, 2 * i + 1, kAbsent, args_.plan.norms[first.norm].affine});
      }
      spread_middle(p, fan_.vector(), call_.stream());
    });
    close(tasks, sums, tiles, rows);
  }

  PoolGradients<S> pool_gradients() const {
    if (!args_.plan.pools()) return {};
    const int64_t size = fan_.result_size();
    const PoolGradients<S> to{call_.template scratch<S>(size), call_.template scratch<S>(size),
                              call_.template scratch<unsigned char>(size)};
    PoolGradientParams<S> p{fan_.frame,
                            fan_.pool_shape(),
                            geometry_.out_height,
                            geometry_.out_width,
                            cut_pool_gradient(geometry_, fan_.vector()),
                            args_.x,
                            to,
                            fan_.edges(),
                            {}};
    for (int e = 0; e < fan_.edges(); ++e) {
      const EdgeTerms<S> terms = fan_.terms(e);
      p.edge[e] = {args_.grad_out[static_cast<size_t>(e)], terms.max_pool.norm,
                   terms.avg_pool.norm};
    }
    pool_gradient(p, fan_.vector(), call_.stream());
    return to;
  }

  // The units in slices, each adding to what the one before has written; the first one brings all
  // that is no convolution.
  void spread_inputs() const {
    SpreadInputParams<S> p{};
    static_cast<SpreadParams<S>&>(p) = spread_params(fan_.input(0, firsts_));
    p.x = args_.x;
    p.base = args_.base;
    p.to = args_.grad_x;
    p.max_pool = fan_.pool_partial(&Edge::max_pool) != kAbsent;
    p.avg_pool = fan_.pool_partial(&Edge::avg_pool) != kAbsent;
    p.pools = pool_gradients();
    for (int e = 0; e < fan_.edges(); ++e) {
      const int64_t identity = args_.plan.edges[e].identity;
      if (identity == kAbsent) continue;
      p.identity[p.identities++] = {args_.grad_out[static_cast<size_t>(e)], identity};
    }
    for_slices(std::max(firsts_, 1), SpreadInputParams<S>::kMostUnits, [&](int begin, int end) {
      p.units = std::min(end, firsts_) - begin;
      for (int i = 0; i < p.units; ++i) p.unit[i] = spread_unit(begin + i);
      spread_input(p, fan_.vector(), call_.stream());
      p.base = {args_.grad_x.data, args_.grad_x.pitch, args_.grad_x.image};
      p.max_pool = p.avg_pool = false;
      p.identities = 0;
    });
  }

  const MixedOpBackward<T, S>& args_;
  cuda::Call& call_;
  Fan<T, S> fan_;
  const Geometry& geometry_;
  const std::vector<Unit>& units_;
  int firsts_;
  int seconds_;
  S* grad_d_ = nullptr;
  S* middle_ = nullptr;
};

}  // namespace

template <class T, class S>
void backward_pass(const torch::stable::Tensor& x, const MixedOpBackward<T, S>& args) {
  cuda::Call call(x);
  Backward<T, S>(args, call).run();
}

template void backward_pass(const torch::stable::Tensor&, const MixedOpBackward<float>&);
template void backward_pass(const torch::stable::Tensor&, const MixedOpBackward<double>&);
template void backward_pass(const torch::stable::Tensor&,
                            const MixedOpBackward<float, __nv_bfloat16>&);
template void backward_pass(const torch::stable::Tensor&, const MixedOpBackward<float, __half>&);

}  // namespace metadnas::mixed_op
