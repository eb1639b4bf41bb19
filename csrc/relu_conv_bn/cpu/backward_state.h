// What the tasks of one backward pass share.
#pragma once

#include "relu_conv_bn/cpu/weights.h"

namespace metadnas::METADNAS_ISA::relu_conv_bn {

template <class T>
struct BackwardState {
  PackedWeights<T> weights;  // packed if grad_x is wanted
  T* norms;                  // per client: NormVectors
  T* gradients;              // per client: NormGradient
  double* sums;              // per chunk: [grad, grad * normal][channel]; then a row per client
  T* weight_grads;           // per chunk: [grid][grid blocks * lanes][in blocks * lanes]

  static int64_t weight_grad_size(const Context<T>& context) {
    return int64_t{context.shape.grids()} * context.grid_blocks() * context.in_blocks() *
           kLanes<T> * kLanes<T>;
  }
  NormGradient<T> gradient(const Context<T>& context, int64_t client) const {
    const int row = context.norm_row();
    return {row, gradients + client * NormGradient<T>::size(row)};
  }
};

template <class T>
BackwardState<T> take_state(const Context<T>& context, const BackwardArgs<T>& args) {
  const Shape& shape = context.shape;
  const int channels = shape.out_channels;
  BackwardState<T> state{PackedWeights<T>(shape, Direction::kBackward), nullptr, nullptr, nullptr,
                         nullptr};
  const int64_t chunks = shape.clients * context.most_chunks();
  const int64_t norms = shape.clients * NormVectors<T>::size(context.norm_row());
  const int64_t gradients = shape.clients * NormGradient<T>::size(context.norm_row());
  const int64_t sums = (chunks + shape.clients) * 2 * channels;
  const int64_t weights = args.grad_x ? state.weights.size() : 0;
  const int64_t grads = args.grad_params ? chunks * BackwardState<T>::weight_grad_size(context) : 0;
  Arena& arena = call_arena();
  arena.reset(static_cast<size_t>(weights + norms + gradients + grads) * sizeof(T) +
              static_cast<size_t>(sums) * sizeof(double) + 5 * 64);
  if (args.grad_x) state.weights.pack(context, arena.take<T>(weights));
  state.norms = arena.take<T>(norms);
  state.gradients = arena.take<T>(gradients);
  state.sums = arena.take<double>(sums);
  state.weight_grads = arena.take<T>(grads);
  return state;
}

}  // namespace metadnas::METADNAS_ISA::relu_conv_bn
