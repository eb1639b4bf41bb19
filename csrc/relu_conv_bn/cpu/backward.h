// The backward pass, of the gradients that are wanted.
#pragma once

#include "relu_conv_bn/cpu/backward_products.h"
#include "relu_conv_bn/cpu/backward_sums.h"

namespace metadnas::METADNAS_ISA::relu_conv_bn {

template <class T>
void backward(const BackwardArgs<T>& args) {
  if (args.grad_x == nullptr && args.grad_params == nullptr) return;
  const Context<T> context(args);
  const Shape& shape = context.shape;
  const int channels = shape.out_channels;
  const BackwardState<T> state = take_state(context, args);
  const int64_t row = shape.weights() + (args.affine ? 2 * channels : 0);
  auto grad_params = [&](int64_t client) {
    return args.grad_params ? args.grad_params + client * row : nullptr;
  };
  // Without batch statistics only gamma and beta ask for the sums.
  const bool summed = args.training || (args.affine && args.grad_params);
  if (summed) {
    context.for_each_task([&](const Task& task) {
      const int64_t offset = context.out_offset(task);
      gradient_sums_task(context, task, args.grad_out + offset, args.normal + offset,
                         context.chunk_row(state.sums, task, int64_t{2} * channels));
    });
  }
  parallel_for_each(shape.clients, [&](int64_t client) {
    close_sums(context, state, client, summed, grad_params(client));
  });
  context.for_each_task([&](const Task& task) {
    const int64_t offset = context.out_offset(task);
    gradients_task(
        context, state, task, args.grad_out + offset, args.normal + offset,
        args.grad_x ? args.grad_x + task.client * shape.images * shape.in_image() : nullptr,
        args.grad_params ? context.chunk_row(state.weight_grads, task,
                                             BackwardState<T>::weight_grad_size(context))
                         : nullptr);
  });
  if (args.grad_params == nullptr) return;
  parallel_for_each(shape.clients * channels, [&](int64_t i) {
    const int out = static_cast<int>(i % channels);
    reduce_weight_grad(context, state, i / channels, out,
                       grad_params(i / channels) + int64_t{out} * shape.in_channels);
  });
}

}  // namespace metadnas::METADNAS_ISA::relu_conv_bn
