// Backward, first pass: the sums that batch norm's gradient and those of gamma and beta need.
#pragma once

#include "relu_conv_bn/cpu/backward_state.h"
#include "relu_conv_bn/cpu/strip.h"

namespace metadnas::METADNAS_ISA::relu_conv_bn {

// sums: of grad_out, then of grad_out * normal, per channel, over one task.
template <class T>
void gradient_sums_task(const Context<T>& context, const Task& task, const T* grad_out,
                        const T* normal, double* sums) {
  constexpr int L = kLanes<T>;
  constexpr int kPixels = 64;  // added up on their own: a long sum would cost digits
  const int channels = context.shape.out_channels;
  for (int i = 0; i < 2 * channels; ++i) sums[i] = 0;
  for_each_strip(task, kPixels, [&](int64_t begin, int pixels) {
    const ptrdiff_t start = (begin - task.begin) * channels;
    for (int c = 0; c < channels; c += L) {
      const int live = channels - c < L ? channels - c : L;
      const T* g = grad_out + start + c;
      const T* v = normal + start + c;
      Vec<T> s[2] = {}, q[2] = {};
      for (int p = 0; p < pixels; ++p, g += channels, v += channels) {
        const Vec<T> grad = load_first(g, live);
        s[p % 2] += grad;
        q[p % 2] += grad * load_first(v, live);
      }
      s[0] += s[1];
      q[0] += q[1];
      for (int i = 0; i < live; ++i) {
        sums[c + i] += static_cast<double>(s[0][i]);
        sums[channels + c + i] += static_cast<double>(q[0][i]);
      }
    }
  });
}

// One client's coefficients, and the gradients of gamma and beta, from the sums of its chunks.
template <class T>
void close_sums(const Context<T>& context, const BackwardState<T>& state, int64_t client,
                bool summed, T* grad_params) {
  const int channels = context.shape.out_channels;
  const ChunkCut cut = context.cut(client);
  const double* rows = state.sums + client * context.most_chunks() * 2 * channels;
  double* total =
      state.sums + (context.shape.clients * context.most_chunks() + client) * 2 * channels;
  for (int i = 0; i < 2 * channels; ++i) {
    total[i] = 0;
    for (int64_t chunk = 0; summed && chunk < cut.chunks(); ++chunk) {
      total[i] += rows[chunk * 2 * channels + i];
    }
  }
  const NormVectors<T> norm = context.norm(state.norms, client);
  context.fill_norm(client, norm);
  const NormGradientSums sums{NormValues::kNormal, 1.0, total, total + channels};
  state.gradient(context, client)
      .fill(norm, sums, channels, context.args.training ? cut.pixels : 0);
  if (grad_params != nullptr && context.args.affine) {
    sums.write_affine(norm, channels, grad_params + context.shape.weights());
  }
}

}  // namespace metadnas::METADNAS_ISA::relu_conv_bn
