// One pass over several images at once, a row at a time: the weighted sum of normalised candidates
// (stage C) and the sums of their products with a gradient.
#pragma once

#include "common/simd.h"
#include "mixed_op/plan.h"

namespace metadnas::METADNAS_ISA {

// Values of one channel block of an image: a candidate's result, a pool's current row, or x itself.
template <class T>
struct Stream {
  const T* data;
  ptrdiff_t row;    // elements between rows; 0 for a buffer of one row
  ptrdiff_t pitch;  // and between pixels
  Vec<T> mean;
  Vec<T> scale;
  int norm;  // index in Plan::norms; kAbsent: the identity
};

// Rows between a value's use and its request: memory is far, and the passes here do little else.
inline constexpr int kRowsAhead = 2;

// Most streams an edge can have: four convolutions, two pools, a skip.
inline constexpr int kMaxStreams = 7;

template <class T>
struct Streams {
  int count = 0;
  Stream<T> of[kMaxStreams];

  void add(const Stream<T>& stream) { of[count++] = stream; }
};

// Calls body.operator()<N>() with the constant N equal to `n`, 0 <= n <= kMaxStreams.
template <class F>
METADNAS_INLINE inline void with_count(int n, F&& body) {
  unroll<kMaxStreams + 1>([&]<int N>() METADNAS_INLINE {
    if (n == N) body.template operator()<N>();
  });
}

// out[w] = constant + sum of scale * (value - mean), or out[w] += it, along row `h`. A few pixels
// at a time: one pixel's sum is a chain of dependent additions.
template <int N, bool kWhole, class T>
void combine_row(const Streams<T>& streams, int h, Vec<T> constant, bool add, int width, int live,
                 T* out, ptrdiff_t pitch) {
  constexpr int kTile = 4;
  const int lanes = kWhole ? kLanes<T> : live;
  const T* data[N + 1];
  unroll<N>([&]<int k>() METADNAS_INLINE { data[k] = streams.of[k].data + h * streams.of[k].row; });
  auto tile = [&]<int TW>(int w) METADNAS_INLINE {
    Vec<T> total[TW];
    unroll<TW>([&]<int t>() METADNAS_INLINE {
      total[t] = constant;
      if (add) total[t] += load_first(out + (w + t) * pitch, lanes);
    });
    unroll<N>([&]<int k>() METADNAS_INLINE {
      const Stream<T>& s = streams.of[k];
      const Vec<T> scale = s.scale, mean = s.mean;
      unroll<TW>([&]<int t>() METADNAS_INLINE {
        const T* value = data[k] + (w + t) * s.pitch;
        prefetch(value + kRowsAhead * s.row, 1);
        total[t] += scale * (load_first(value, lanes) - mean);
      });
    });
    unroll<TW>([&]<int t>()
                   METADNAS_INLINE { store_first(out + (w + t) * pitch, total[t], lanes); });
  };
  int w = 0;
  for (; w + kTile <= width; w += kTile) tile.template operator()<kTile>(w);
  for (; w < width; ++w) tile.template operator()<1>(w);
}

// sums[0] += sum of grad, sums[1 + k] += sum of grad * (value_k - mean_k) along row `h`. Row sums
// first: adding pixel by pixel to a long sum would cost digits.
template <int N, bool kWhole, class T>
void product_row(const Streams<T>& streams, int h, const T* grad, ptrdiff_t pitch, int width,
                 int live, Vec<T>* sums) {
  const int lanes = kWhole ? kLanes<T> : live;
  const T* data[N + 1];
  unroll<N>([&]<int k>() METADNAS_INLINE { data[k] = streams.of[k].data + h * streams.of[k].row; });
  Vec<T> total[N + 1] = {};
  for (int w = 0; w < width; ++w) {
    const Vec<T> g = load_first(grad + w * pitch, lanes);
    total[0] += g;
    unroll<N>([&]<int k>() METADNAS_INLINE {
      const Stream<T>& s = streams.of[k];
      prefetch(data[k] + w * s.pitch + kRowsAhead * s.row, 1);
      total[1 + k] += g * (load_first(data[k] + w * s.pitch, lanes) - s.mean);
    });
  }
  unroll<N + 1>([&]<int k>() METADNAS_INLINE { sums[k] += total[k]; });
}

}  // namespace metadnas::METADNAS_ISA
