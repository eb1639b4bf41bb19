// Pointwise (1x1) products on a strip of pixels, with an epilogue while the results are in
// registers; and their weight gradient.
#pragma once

#include "common/simd.h"

namespace metadnas::METADNAS_ISA {

// Register tile: MP pixels times NB channel blocks.
struct PairTile {
  static constexpr int pixels = kRegisters == 32 ? 8 : 4;
  static constexpr int blocks = 2;
};
struct SingleTile {
  static constexpr int pixels = kRegisters == 32 ? 16 : 8;
  static constexpr int blocks = 1;
};

template <class Tile, class T, class Epilogue>
METADNAS_INLINE inline void pointwise_tile(const T* in, ptrdiff_t plane, int channels_in,
                                           const T* matrix, int matrix_row, int block0, int pixels,
                                           Epilogue&& epilogue) {
  constexpr int L = kLanes<T>;
  constexpr int MP = Tile::pixels;
  constexpr int NB = Tile::blocks;
  for (int p0 = 0; p0 < pixels; p0 += MP) {
    Vec<T> acc[NB][MP];
    unroll<NB>([&]<int b>() METADNAS_INLINE {
      unroll<MP>([&]<int p>() METADNAS_INLINE { acc[b][p] = Vec<T>{}; });
    });
    for (int c0 = 0; c0 < channels_in; c0 += L) {
      const T* values = in + c0 / L * plane + p0 * L;
      const T* weights = matrix + static_cast<ptrdiff_t>(c0) * matrix_row + block0 * L;
      const int live = channels_in - c0 < L ? channels_in - c0 : L;
#pragma GCC unroll 4
      for (int c = 0; c < live; ++c) {
        Vec<T> w[NB];
        unroll<NB>([&]<int b>() METADNAS_INLINE { w[b] = load(weights + c * matrix_row + b * L); });
        unroll<MP>([&]<int p>() METADNAS_INLINE {
          const T value = values[p * L + c];
          unroll<NB>([&]<int b>() METADNAS_INLINE { acc[b][p] += value * w[b]; });
        });
      }
    }
    const int valid = pixels - p0 < MP ? pixels - p0 : MP;
    unroll<NB>([&]<int b>() METADNAS_INLINE {
      epilogue.template operator()<MP>(block0 + b, p0, valid, acc[b]);
    });
  }
}

// in: [block][pixel][lane], `plane` apart; matrix: [channels_in][matrix_row], zero-padded to whole
// blocks. The epilogue gets (output block, first pixel, valid pixels, accumulators).
template <class T, class Epilogue>
METADNAS_INLINE inline void pointwise(const T* in, ptrdiff_t plane, int channels_in,
                                      const T* matrix, int matrix_row, int pixels,
                                      Epilogue&& epilogue) {
  const int blocks = matrix_row / kLanes<T>;
  int block = 0;
  for (; block + 1 < blocks; block += 2) {
    pointwise_tile<PairTile>(in, plane, channels_in, matrix, matrix_row, block, pixels, epilogue);
  }
  if (block < blocks) {
    pointwise_tile<SingleTile>(in, plane, channels_in, matrix, matrix_row, block, pixels, epilogue);
  }
}

// grad[out channel][in block][lane] += sum over pixels of dz[pixel][out channel] * in[pixel].
template <int MB, int NB, class T>
METADNAS_INLINE inline void pointwise_weight_grad_tile(const T* dz, ptrdiff_t dz_plane, const T* in,
                                                       ptrdiff_t in_plane, int pixels, int out0,
                                                       int block0, T* grad, int grad_row) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[MB][NB];
  T* corner = grad + static_cast<ptrdiff_t>(out0) * grad_row + block0 * L;
  unroll<MB>([&]<int m>() METADNAS_INLINE {
    unroll<NB>([&]<int b>() METADNAS_INLINE { acc[m][b] = load(corner + m * grad_row + b * L); });
  });
  const T* zp = dz + out0 / L * dz_plane + out0 % L;
  const T* ip = in + block0 * in_plane;
#pragma GCC unroll 2
  for (int p = 0; p < pixels; ++p) {
    Vec<T> v[NB];
    unroll<NB>([&]<int b>() METADNAS_INLINE { v[b] = load(ip + b * in_plane + p * L); });
    unroll<MB>([&]<int m>() METADNAS_INLINE {
      const T value = zp[p * L + m];
      unroll<NB>([&]<int b>() METADNAS_INLINE { acc[m][b] += value * v[b]; });
    });
  }
  unroll<MB>([&]<int m>() METADNAS_INLINE {
    unroll<NB>([&]<int b>() METADNAS_INLINE { store(corner + m * grad_row + b * L, acc[m][b]); });
  });
}

// dz: [block][pixel][lane] with zeros in dead lanes; grad: [out_blocks * lanes][in_blocks * lanes].
template <class T>
void pointwise_weight_grad(const T* dz, ptrdiff_t dz_plane, int out_blocks, const T* in,
                           ptrdiff_t in_plane, int in_blocks, int pixels, T* grad) {
  constexpr int L = kLanes<T>;
  constexpr int pair = kRegisters == 32 ? 8 : 4;
  constexpr int single = kRegisters == 32 ? 16 : 8;
  constexpr int MP = pair < L ? pair : L;
  constexpr int MS = single < L ? single : L;
  const int row = in_blocks * L;
  int block = 0;
  for (; block + 1 < in_blocks; block += 2) {
    for (int out = 0; out < out_blocks * L; out += MP) {
      pointwise_weight_grad_tile<MP, 2>(dz, dz_plane, in, in_plane, pixels, out, block, grad, row);
    }
  }
  if (block < in_blocks) {
    for (int out = 0; out < out_blocks * L; out += MS) {
      pointwise_weight_grad_tile<MS, 1>(dz, dz_plane, in, in_plane, pixels, out, block, grad, row);
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
