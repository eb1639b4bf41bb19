// One unit on one strip or image: the depthwise results that its pointwise product reads, and the
// product itself with batch-norm sums.
#pragma once

#include "mixed_op/cpu/context.h"
#include "mixed_op/cpu/depthwise.h"
#include "mixed_op/cpu/pointwise.h"

namespace metadnas::METADNAS_ISA {

// The inputs of a unit's pointwise product for one strip: d is [in block][pixel][lane].
template <class T>
void unit_strip(const Context<T>& context, const Unit& unit, const PackedUnit<T>& packed,
                const PaddedImage<T>& in, int row0, int rows, T* d, ptrdiff_t plane) {
  constexpr int L = kLanes<T>;
  const Geometry& g = context.geometry;
  if (!unit.factorized()) {
    const DepthwiseRows<T> what{in, packed.taps, g.out_width, row0, rows};
    with_depthwise<T>(
        unit.kernel, unit.dilation, unit.stride, context.layout.out_tile,
        [&]<int K, int D, int S, int TW>() {
          depthwise_rows<K, D, S, TW, false>(
              what, [&](int block, int h, int w, Vec<T>(&acc)[TW]) METADNAS_INLINE {
                T* to = d + block * plane + ((h - row0) * g.out_width + w) * L;
                unroll<TW>([&]<int t>() METADNAS_INLINE { store(to + t * L, acc[t]); });
              });
        });
    return;
  }
  for (int grid = 0; grid < 2; ++grid) {
    for (int block = 0; block < in.blocks; ++block) {
      T* to = d + (grid * in.blocks + block) * plane;
      for (int h = 0; h < rows; ++h) {
        const T* from = in.at(block, 2 * (row0 + h) + grid, grid);
        for (int w = 0; w < g.out_width; ++w, to += L) store(to, load(from + 2 * w * L));
      }
    }
  }
}

// Calls use(row0, rows) for the strips of an output image.
template <class T, class Use>
METADNAS_INLINE inline void for_each_strip(const Context<T>& context, Use&& use) {
  const int height = context.geometry.out_height;
  const int step = context.layout.out_strip.rows;
  for (int row0 = 0; row0 < height; row0 += step) {
    use(row0, height - row0 < step ? height - row0 : step);
  }
}

// An image that will be read next: a unit at work asks for it piece by piece.
template <class T>
struct Ahead {
  const T* data = nullptr;
  ptrdiff_t row = 0;  // elements for each output row of the unit

  METADNAS_INLINE void ask(int row0, int rows) const {
    if (data != nullptr) prefetch(data + row0 * row, rows * row);
  }
};

// The unit's pointwise results on one image, strip by strip, while in registers:
// use(block, first pixel in the image, valid pixels, accumulators).
template <class T, class Use>
METADNAS_INLINE inline void unit_results(const Context<T>& context, const Unit& unit,
                                         const PackedUnit<T>& packed, const PaddedImage<T>& in,
                                         T* strip, const Ahead<T>& ahead, Use&& use) {
  const ptrdiff_t plane = static_cast<ptrdiff_t>(context.layout.out_strip.capacity) * kLanes<T>;
  const int width = context.geometry.out_width;
  for_each_strip(context, [&](int row0, int rows) METADNAS_INLINE {
    ahead.ask(row0, rows);
    unit_strip(context, unit, packed, in, row0, rows, strip, plane);
    pointwise(strip, plane, context.in_channels(unit), packed.matrix,
              context.layout.padded_channels, rows * width,
              [&]<int MP>(int block, int p0, int valid, Vec<T>(&acc)[MP])
                  METADNAS_INLINE { use(block, row0 * width + p0, valid, acc); });
  });
}

// One unit on one image: z, and sums for its mean and M2 around a shift from the image itself.
template <class T>
void unit_forward(const Context<T>& context, const Unit& unit, const PackedUnit<T>& packed,
                  const PaddedImage<T>& in, T* z, T* strip, ChunkMoments<T>* sums,
                  const Ahead<T>& ahead = {}) {
  constexpr int L = kLanes<T>;
  const ptrdiff_t channels = context.geometry.channels;
  const bool streaming = context.streaming;
  for (int block = 0; block < context.layout.blocks; ++block) sums[block] = ChunkMoments<T>{};
  auto use = [&]<int MP>(int block, int p0, int valid, Vec<T>(&acc)[MP]) METADNAS_INLINE {
    const int live = context.layout.live(block);
    T* to = z + p0 * channels + block * L;
    ChunkMoments<T>& total = sums[block];
    if (p0 == 0) total.shift = acc[0];
    const Vec<T> shift = total.shift;
    Vec<T> s[2] = {}, q[2] = {};
    auto add = [&]<int p>() METADNAS_INLINE {
      const Vec<T> d = acc[p] - shift;
      s[p % 2] += d;
      q[p % 2] += d * d;
    };
    if (valid == MP && streaming) {
      unroll<MP>([&]<int p>() METADNAS_INLINE {
        store_streaming(to + p * channels, acc[p]);
        add.template operator()<p>();
      });
    } else if (valid == MP && live == L) {
      unroll<MP>([&]<int p>() METADNAS_INLINE {
        store(to + p * channels, acc[p]);
        add.template operator()<p>();
      });
    } else {
      unroll<MP>([&]<int p>() METADNAS_INLINE {
        if (p < valid) {
          store_first(to + p * channels, acc[p], live);
          add.template operator()<p>();
        }
      });
    }
    total.add(s[0] + s[1], q[0] + q[1]);
  };
  unit_results(context, unit, packed, in, strip, ahead, use);
}

}  // namespace metadnas::METADNAS_ISA
