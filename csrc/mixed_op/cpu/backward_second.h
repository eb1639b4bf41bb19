// Backward stage 2: the second halves of the separable convolutions.
#pragma once

#include "mixed_op/cpu/backward_sums.h"
#include "mixed_op/cpu/backward_unit.h"

namespace metadnas::METADNAS_ISA {

// Buffers of a backward call that several stages share.
template <class T>
struct BackwardBuffers {
  T* norm_gradients;  // (client, norm) NormGradient
  T* middle;          // (second-half unit, client, image) gradient of the first half's batch norm
  T* weight_grads;    // (task, Context::weight_grad_size); null: not wanted

  NormGradient<T> gradient(const Context<T>& context, int64_t client, int norm) const {
    const int padded = context.layout.padded_channels;
    const int64_t index = client * context.norms() + norm;
    return {padded, norm_gradients + index * NormGradient<T>::size(padded)};
  }
  T* middle_image(const Context<T>& context, int unit, int64_t client, int64_t image) const {
    const Geometry& g = context.geometry;
    const int64_t index = unit - context.plan.first_half_units();
    return middle + ((index * g.clients + client) * g.images + image) * context.out_size();
  }
  T* weight_grad(const Context<T>& context, int64_t task, int unit) const {
    if (weight_grads == nullptr) return nullptr;
    return weight_grads + task * context.weight_grad_size() + context.weight_grad_offset(unit);
  }
};

// Takes the gradient of the rectified middle while in registers: relu, its sums for batch norm, and
// a copy for the first half.
template <class T>
struct MiddleSink {
  const Context<T>& context;
  const PaddedImage<T>& rectified;
  const T* z;     // of the first half
  const T* mean;  // and its batch norm's
  T* middle;
  Vec<T>* sums;      // per block, of the gradient
  Vec<T>* products;  // and of gradient * (z - mean)

  template <int TW>
  METADNAS_INLINE void operator()(int block, int h, int w, Vec<T> (&acc)[TW]) const {
    constexpr int L = kLanes<T>;
    const int width = context.geometry.out_width;
    const ptrdiff_t channels = context.geometry.channels;
    const int live = context.layout.live(block);
    const T* r = rectified.at(block, h, w);
    const ptrdiff_t start = (static_cast<ptrdiff_t>(h) * width + w) * channels + block * L;
    const Vec<T> m = load(mean + block * L);
    Vec<T> s[2] = {}, q[2] = {};
    auto take = [&]<int t>(int lanes) METADNAS_INLINE {
      const Vec<T> grad = relu_grad(load(r + t * L), acc[t]);
      T* to = middle + start + t * channels;
      context.streaming ? store_streaming(to, grad) : store_first(to, grad, lanes);
      s[t % 2] += grad;
      q[t % 2] += grad * (load_first(z + start + t * channels, lanes) - m);
    };
    if (live == L && w + TW <= width) {
      unroll<TW>([&]<int t>() METADNAS_INLINE { take.template operator()<t>(L); });
    } else {
      unroll<TW>([&]<int t>() METADNAS_INLINE {
        if (w + t < width) take.template operator()<t>(live);
      });
    }
    sums[block] += s[0] + s[1];
    products[block] += q[0] + q[1];
  }
};

template <class T>
void second_half_image(const MixedOpBackward<T>& args, const Context<T>& context,
                       const BackwardBuffers<T>& buffers, const GradientSums<T>& sums,
                       const Task& task, int64_t image, int index, T* weight_grad, const T* first_z,
                       const UnitScratch<T>& scratch, Vec<T>* totals) {
  const Unit& unit = context.plan.units[index];
  const Unit& first = context.plan.units[unit.source];
  const NormVectors<T> norm = context.norm(task.client, first.norm);
  const PackedUnit<T> packed = context.packed(task.client, index);
  const Images<const T>& grads = args.grad_out[unit.edge];
  const int blocks = context.layout.blocks;
  pad_normalised_relu(context.layout, first_z, norm, scratch.in);
  unit_backward(
      context, unit, packed,
      UnitGradient<T>{buffers.gradient(context, task.client, unit.norm),
                      context.norm(task.client, unit.norm).mean,
                      context.image(grads, task.client, image),
                      grads.pitch,
                      context.z_image(index, task.client, image),
                      weight_grad,
                      true,
                      {context.z_image(unit.source, task.client, image + 1), context.out_row()}},
      scratch, static_cast<const PaddedImage<T>*>(nullptr));
  for (int block = 0; block < 2 * blocks; ++block) totals[block] = Vec<T>{};
  const MiddleSink<T> sink{context,
                           scratch.in,
                           first_z,
                           norm.mean,
                           buffers.middle_image(context, index, task.client, image),
                           totals,
                           totals + blocks};
  unit_input_grad<false>(unit, packed, context.layout.out_tile, scratch, sink);
  // A middle norm uses the row of its own for the products and that of the candidate's norm, no
  // longer needed, for the plain sums.
  for (int block = 0; block < blocks; ++block) {
    sums.write(task.client, image, unit.norm, block, totals[block]);
    sums.write(task.client, image, first.norm, block, totals[blocks + block]);
  }
}

template <class T>
void backward_second_halves(const MixedOpBackward<T>& args, const Context<T>& context,
                            const BackwardBuffers<T>& buffers, const GradientSums<T>& sums,
                            const Task& task, int64_t index) {
  UnitScratch<T> scratch(context, context.layout.output_image());
  Remaker<T> remaker(context);
  const std::vector<Unit>& units = context.plan.units;
  const int second = context.plan.first_half_units();
  const bool remaking = units[units[second].source].kept == kAbsent;
  const int blocks = context.layout.blocks;
  Arena& arena = worker_arena();
  arena.reset(scratch.bytes() + (remaking ? remaker.bytes() : 0) +
              static_cast<size_t>(2 * blocks) * sizeof(Vec<T>) + 64);
  scratch.take(arena);
  if (remaking) remaker.take(arena);
  Vec<T>* totals = arena.take<Vec<T>>(2 * blocks);
  for (int u = second; u < context.units(); ++u) {
    T* weight_grad = buffers.weight_grad(context, index, u);
    for (int64_t image = task.begin; image < task.end; ++image) {
      if (remaking) remaker.read_input(task, image);
      const T* first_z = remaker.result(task, image, units[u].source);
      second_half_image(args, context, buffers, sums, task, image, u, weight_grad, first_z, scratch,
                        totals);
    }
  }
  finish_streaming();
}

}  // namespace metadnas::METADNAS_ISA
