// Mixtures of clients: shares (M, G) times clients (G, P), in double precision and client order.
#include "aggregate/cuda/kernels.h"
#include "common/cuda/tile_product.cuh"

namespace metadnas::aggregate_cuda {
namespace {

using Tile = cuda::TileProduct<double, 64, 64>;

template <class T>
struct Mixtures {
  MixturesInputs<T> in;
  const double* shares;
  int64_t row_tiles;
};

template <class T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) mixtures_kernel(Mixtures<T> p) {
  const Clients<T>& from = p.in.from;
  // Tiles of the same columns side by side, so that these are read once.
  const int64_t first_row = blockIdx.x % p.row_tiles * Tile::kRows;
  const int64_t first_column = blockIdx.x / p.row_tiles * Tile::kColumns;
  Tile tile;
  tile.add<cuda::Along::kDepth, cuda::Along::kSide, cuda::SkipZero>(
      *cuda::shared_memory<Tile::Shared>(), from.clients,
      [&](int r, int64_t g) {
        const int64_t m = first_row + r;
        return m < p.in.mixtures ? p.shares[m * from.clients + g] : 0.0;
      },
      [&](int64_t g, int c) {
        const int64_t column = first_column + c;
        return column < from.columns ? static_cast<double>(from.row(g)[column]) : 0.0;
      });
#pragma unroll
  for (int r = 0; r < Tile::kEach; ++r) {
    const int64_t m = first_row + tile.row() + r;
#pragma unroll
    for (int c = 0; c < Tile::kEach; ++c) {
      const int64_t column = first_column + tile.column() + c;
      if (m >= p.in.mixtures || column >= from.columns) continue;
      p.in.out[m * from.columns + column] = static_cast<T>(tile.sums[r][c]);
    }
  }
}

}  // namespace

template <class T>
void mixtures(const MixturesInputs<T>& in, const double* shares, cuda::Stream stream) {
  const int64_t row_tiles = cuda::ceil_div(in.mixtures, Tile::kRows);
  const int64_t tiles = row_tiles * cuda::ceil_div(in.from.columns, Tile::kColumns);
  cuda::launch(mixtures_kernel<T>, cuda::grid_size(tiles), Tile::kThreads, sizeof(Tile::Shared),
               stream, {in, shares, row_tiles});
}

template void mixtures(const MixturesInputs<float>&, const double*, cuda::Stream);
template void mixtures(const MixturesInputs<double>&, const double*, cuda::Stream);

}  // namespace metadnas::aggregate_cuda
