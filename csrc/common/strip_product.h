// Products of a strip of pixels with a matrix, and their weight gradient, in register tiles.
//
// A strip is [channel block][pixel][lane], its blocks `plane` elements apart: a few dozen pixels,
// so that it stays in the first-level cache while every tile reads it.
#pragma once

#include "common/simd.h"

namespace metadnas::METADNAS_ISA {

// A (rows, columns) matrix in the order the tiles read it: for every two column blocks (or the last
// one alone) a panel [row][2 * lanes]; zeros behind the last column.
template <class T>
struct PanelMatrix {
  T* data;
  int rows;
  int columns;

  int64_t size() const { return int64_t{rows} * blocks() * kLanes<T>; }
  int blocks() const { return blocks_of<T>(columns); }
  T* panel(int block) const { return data + int64_t{rows} * (block & ~1) * kLanes<T>; }
  int panel_width(int block) const { return ((block | 1) < blocks() ? 2 : 1) * kLanes<T>; }
  T& at(int row, int column) const {
    const int block = column / kLanes<T>;
    return panel(block)[int64_t{row} * panel_width(block) + column - (block & ~1) * kLanes<T>];
  }
};

// MP pixels times NB column blocks; the epilogue gets (block, first pixel, valid pixels,
// accumulators) for each block.
template <int MP, int NB, class T, class Epilogue>
METADNAS_INLINE inline void strip_product_panel(const T* in, ptrdiff_t plane,
                                                const PanelMatrix<T>& matrix, int block, int pixels,
                                                Epilogue&& epilogue) {
  constexpr int L = kLanes<T>;
  for (int p0 = 0; p0 < pixels; p0 += MP) {
    Vec<T> acc[NB][MP] = {};
    const T* weights = matrix.panel(block);
    for (int r0 = 0; r0 < matrix.rows; r0 += L) {
      const T* values = in + r0 / L * plane + p0 * L;
      const int live = matrix.rows - r0 < L ? matrix.rows - r0 : L;
#pragma GCC unroll 4
      for (int r = 0; r < live; ++r, weights += NB * L) {
        Vec<T> w[NB];
        unroll<NB>([&]<int b>() METADNAS_INLINE { w[b] = load(weights + b * L); });
        unroll<MP>([&]<int p>() METADNAS_INLINE {
          const T value = values[p * L + r];
          unroll<NB>([&]<int b>() METADNAS_INLINE { acc[b][p] += value * w[b]; });
        });
      }
    }
    const int valid = pixels - p0 < MP ? pixels - p0 : MP;
    unroll<NB>([&]<int b>() METADNAS_INLINE {
      epilogue.template operator()<MP>(block + b, p0, valid, acc[b]);
    });
  }
}

// Strips have room for whole tiles: up to this many pixels behind the last one are read, whatever
// they are, and what a tile makes of them is not valid.
inline constexpr int kStripSlack = 16;

// in (pixels, rows of the matrix) times the matrix.
template <class T, class Epilogue>
METADNAS_INLINE inline void strip_product(const T* in, ptrdiff_t plane,
                                          const PanelMatrix<T>& matrix, int pixels,
                                          Epilogue&& epilogue) {
  constexpr int MP = kRegisters == 32 ? 8 : 4;
  int block = 0;
  for (; block + 1 < matrix.blocks(); block += 2) {
    strip_product_panel<MP, 2>(in, plane, matrix, block, pixels, epilogue);
  }
  if (block < matrix.blocks()) {
    strip_product_panel<2 * MP, 1>(in, plane, matrix, block, pixels, epilogue);
  }
}

// grad[row][block][lane] += sum over pixels of rows[pixel][row] * columns[pixel][block][lane].
template <int MR, int NB, class T>
METADNAS_INLINE inline void strip_outer_tile(const T* rows, const T* columns,
                                             ptrdiff_t columns_plane, int pixels, T* grad,
                                             int grad_row) {
  constexpr int L = kLanes<T>;
  Vec<T> acc[MR][NB];
  unroll<MR>([&]<int r>() METADNAS_INLINE {
    unroll<NB>([&]<int b>() METADNAS_INLINE { acc[r][b] = load(grad + r * grad_row + b * L); });
  });
#pragma GCC unroll 2
  for (int p = 0; p < pixels; ++p) {
    Vec<T> v[NB];
    unroll<NB>([&]<int b>() METADNAS_INLINE { v[b] = load(columns + b * columns_plane + p * L); });
    unroll<MR>([&]<int r>() METADNAS_INLINE {
      const T value = rows[p * L + r];
      unroll<NB>([&]<int b>() METADNAS_INLINE { acc[r][b] += value * v[b]; });
    });
  }
  unroll<MR>([&]<int r>() METADNAS_INLINE {
    unroll<NB>([&]<int b>() METADNAS_INLINE { store(grad + r * grad_row + b * L, acc[r][b]); });
  });
}

// Both strips in whole blocks; grad: [row_blocks * lanes][column_blocks * lanes]. What the lanes
// behind the last row and column get is of no use.
template <class T>
void strip_outer(const T* rows, ptrdiff_t rows_plane, int row_blocks, const T* columns,
                 ptrdiff_t columns_plane, int column_blocks, int pixels, T* grad) {
  constexpr int L = kLanes<T>;
  constexpr int pair = kRegisters == 32 ? 8 : 4;
  constexpr int MR = pair < L ? pair : L;
  constexpr int MS = 2 * pair < L ? 2 * pair : L;
  const int grad_row = column_blocks * L;
  auto row_at = [&](int r) { return rows + r / L * rows_plane + r % L; };
  int block = 0;
  for (; block + 1 < column_blocks; block += 2) {
    for (int r = 0; r < row_blocks * L; r += MR) {
      strip_outer_tile<MR, 2>(row_at(r), columns + block * columns_plane, columns_plane, pixels,
                              grad + static_cast<ptrdiff_t>(r) * grad_row + block * L, grad_row);
    }
  }
  for (int r = 0; block < column_blocks && r < row_blocks * L; r += MS) {
    strip_outer_tile<MS, 1>(row_at(r), columns + block * columns_plane, columns_plane, pixels,
                            grad + static_cast<ptrdiff_t>(r) * grad_row + block * L, grad_row);
  }
}

}  // namespace metadnas::METADNAS_ISA
