// Depthwise convolutions on blocked images: forward (also serving the data gradient, with flipped
// taps) and weight gradient.
#pragma once

#include "mixed_op/cpu/scratch.h"

namespace metadnas::METADNAS_ISA {

// Rows of taps that touch the image: the others would only add zeros.
struct TapRows {
  int begin;
  int end;
  int step;
};

// For an output row whose tap 0 reads input row `top` of an image of `height` rows. A zero-stuffed
// image (the gradient of a stride-2 convolution) has zeros in all odd rows: those are skipped too.
inline TapRows tap_rows(int kernel, int dilation, int top, int height, bool zero_stuffed) {
  int begin = top >= 0 ? 0 : (-top + dilation - 1) / dilation;
  int end = (height - 1 - top) / dilation + 1;
  if (end > kernel) end = kernel;
  int step = 1;
  if (zero_stuffed) {
    if (dilation % 2 == 0) {
      if (top % 2 != 0) end = begin;
    } else {
      begin += (top + begin * dilation) & 1;
      step = 2;
    }
  }
  return {begin, end, step};
}

// kStuffed: the input is zero in every odd column (and S is 1); w counts from an even column.
template <int K, int D, int S, int TW, bool kStuffed, class T>
METADNAS_INLINE inline void depthwise_tile(const T* in, ptrdiff_t row, const T* taps, TapRows rows,
                                           Vec<T> (&acc)[TW]) {
  constexpr int L = kLanes<T>;
  constexpr int P = (K - 1) / 2 * D;
  unroll<TW>([&]<int t>() METADNAS_INLINE { acc[t] = Vec<T>{}; });
  for (int kh = rows.begin; kh < rows.end; kh += rows.step) {
    Vec<T> tap[K];
    unroll<K>([&]<int k>() METADNAS_INLINE { tap[k] = load(taps + (kh * K + k) * L); });
    const T* r = in + kh * D * row;
    // Each column is read once and feeds every tap that meets it.
    unroll<(TW - 1) * S + (K - 1) * D + 1>([&]<int j>() METADNAS_INLINE {
      if constexpr (!kStuffed || (j + P) % 2 == 0) {
        const Vec<T> v = load(r + j * L);
#pragma GCC unroll 5
        for (int k = 0; k < K; ++k) {
          const int offset = j - k * D;
          if (offset >= 0 && offset % S == 0 && offset / S < TW) acc[offset / S] += v * tap[k];
        }
      }
    });
  }
}

// A depthwise convolution of rows [row0, row0 + rows): sink(block, h, w, acc) gets tiles of TW
// pixels from (h, w) on while they are in registers; those at or beyond `out_width` are rubbish.
template <class T>
struct DepthwiseRows {
  PaddedImage<T> in;
  const T* taps;  // [block][K * K][lane]
  int out_width;
  int row0;
  int rows;
};

template <int K, int D, int S, int TW, bool kStuffed, class T, class Sink>
METADNAS_INLINE inline void depthwise_rows(const DepthwiseRows<T>& a, Sink&& sink) {
  constexpr int L = kLanes<T>;
  constexpr int P = (K - 1) / 2 * D;
  for (int block = 0; block < a.in.blocks; ++block) {
    const T* taps = a.taps + static_cast<ptrdiff_t>(block) * K * K * L;
    for (int h = a.row0; h < a.row0 + a.rows; ++h) {
      const int top = h * S - P;
      const TapRows active = tap_rows(K, D, top, a.in.height, kStuffed);
      for (int w = 0; w < a.out_width; w += TW) {
        Vec<T> acc[TW];
        depthwise_tile<K, D, S, TW, kStuffed>(a.in.at(block, top, w * S - P), a.in.row, taps,
                                              active, acc);
        sink(block, h, w, acc);
      }
    }
  }
}

// Rows of taps whose gradient sums fit the registers.
template <int K>
inline constexpr int kTapRows = (kRegisters - 6) / K < K ? (kRegisters - 6) / K : K;

// Pixels a weight gradient takes at once, given the tile width of the forward pass.
template <int K, int TW>
inline constexpr int kGradTile = kTapRows<K> * K > 20 || TW < 8 ? 4 : 8;

// grad[k][lane] += sum over the image of dd[pixel] * in[pixel + tap k], one channel block. `dd`
// holds the gradient of output pixel (h, w) at (h * S, w * S) and zeros everywhere else.
template <int K, int D, int S, int TG, class T>
void depthwise_weight_grad(const PaddedImage<T>& dd, const PaddedImage<T>& in, int block,
                           int out_height, int out_width, T* grad) {
  constexpr int L = kLanes<T>;
  constexpr int P = (K - 1) / 2 * D;
  constexpr int KR = kTapRows<K>;
  for (int k0 = 0; k0 < K; k0 += KR) {
    const int live_rows = K - k0 < KR ? K - k0 : KR;
    Vec<T> acc[KR * K];
    unroll<KR * K>([&]<int i>() METADNAS_INLINE {
      acc[i] = i / K < live_rows ? load(grad + (k0 * K + i) * L) : Vec<T>{};
    });
    for (int h = 0; h < out_height; ++h) {
      for (int w = 0; w < out_width; w += TG) {
        const T* dp = dd.at(block, h * S, w * S);
        const T* ip = in.at(block, h * S - P + k0 * D, w * S - P);
        Vec<T> y[TG];
        unroll<TG>([&]<int t>() METADNAS_INLINE { y[t] = load(dp + t * S * L); });
        unroll<KR>([&]<int kh>() METADNAS_INLINE {
          if (kh < live_rows) {
            const T* r = ip + kh * D * in.row;
            unroll<(TG - 1) * S + (K - 1) * D + 1>([&]<int j>() METADNAS_INLINE {
              const Vec<T> v = load(r + j * L);
#pragma GCC unroll 5
              for (int k = 0; k < K; ++k) {
                const int offset = j - k * D;
                if (offset >= 0 && offset % S == 0 && offset / S < TG) {
                  acc[kh * K + k] += v * y[offset / S];
                }
              }
            });
          }
        });
      }
    }
    unroll<KR * K>([&]<int i>() METADNAS_INLINE {
      if (i / K < live_rows) store(grad + (k0 * K + i) * L, acc[i]);
    });
  }
}

// Calls body.operator()<K, D, S, TW>() for run-time values; T is the element type.
template <class T, class F>
METADNAS_INLINE inline void with_depthwise(int kernel, int dilation, int stride, int tile,
                                           F&& body) {
  auto with_tile = [&]<int K, int D, int S>() {
    if constexpr (kWideTiles<T>) {
      if (tile == 16) return body.template operator()<K, D, S, 16>();
    }
    if (tile == 4) return body.template operator()<K, D, S, 4>();
    return body.template operator()<K, D, S, 8>();
  };
  auto with_stride = [&]<int K, int D>() {
    return stride == 1 ? with_tile.template operator()<K, D, 1>()
                       : with_tile.template operator()<K, D, 2>();
  };
  if (kernel == 3) {
    return dilation == 1 ? with_stride.template operator()<3, 1>()
                         : with_stride.template operator()<3, 2>();
  }
  return dilation == 1 ? with_stride.template operator()<5, 1>()
                       : with_stride.template operator()<5, 2>();
}

}  // namespace metadnas::METADNAS_ISA
