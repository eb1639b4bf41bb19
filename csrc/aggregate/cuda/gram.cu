// Gram matrix of the clients' rows about an origin, in double precision: tiles on and above the
// diagonal, split over groups of columns, added up in the order of the groups.
#include "aggregate/cuda/kernels.h"
#include "common/cuda/tile_product.cuh"

namespace metadnas::aggregate_cuda {
namespace {

using cuda::ceil_div;

constexpr int64_t kFewClients = 32;
constexpr int kSumThreads = 128;

// The first client of the `index`-th tile's rows and of its columns, row by row.
template <int kSide>
__device__ void tile_origin(int64_t index, int64_t clients, int64_t* first, int64_t* second) {
  int64_t in_row = ceil_div(clients, kSide);
  *first = 0;
  for (; index >= in_row; --in_row, *first += kSide) index -= in_row;
  *second = *first + index * kSide;
}

template <class T, class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks) gram_kernel(GramArgs<T> p) {
  const Clients<T>& from = p.from;
  const int64_t clients = from.clients;
  const int64_t group = blockIdx.x % p.groups;
  int64_t first, second;
  tile_origin<Tile::kRows>(blockIdx.x / p.groups, clients, &first, &second);
  const int64_t chunks = ceil_div(from.columns, Tile::kDepth);
  const int64_t begin = chunks * group / p.groups * Tile::kDepth;
  const int64_t end = min(chunks * (group + 1) / p.groups * Tile::kDepth, from.columns);
  const auto deviation = [&](int64_t client, int64_t k) {
    if (client >= clients) return 0.0;
    return static_cast<double>(from.row(client)[begin + k]) -
           static_cast<double>(p.origin[begin + k]);
  };
  Tile tile;
  tile.template add<cuda::Along::kDepth, cuda::Along::kDepth>(
      *cuda::shared_memory<typename Tile::Shared>(), end - begin,
      [&](int r, int64_t k) { return deviation(first + r, k); },
      [&](int64_t k, int c) { return deviation(second + c, k); });
  double* out = p.out + group * clients * clients;
#pragma unroll
  for (int r = 0; r < Tile::kEach; ++r) {
    const int64_t i = first + tile.row() + r;
#pragma unroll
    for (int c = 0; c < Tile::kEach; ++c) {
      const int64_t j = second + tile.column() + c;
      if (i < clients && j < clients) out[i * clients + j] = tile.sums[r][c];
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kSumThreads) add_groups_kernel(GramArgs<T> p) {
  const int64_t clients = p.from.clients;
  const int64_t at = int64_t{blockIdx.x} * kSumThreads + threadIdx.x;
  const int64_t i = at / clients, j = at % clients;
  if (i >= clients || j < i) return;
  double sum = 0;
  for (int64_t group = 0; group < p.groups; ++group) {
    sum += p.out[(group * clients + i) * clients + j];
  }
  p.out[i * clients + j] = sum;
  p.out[j * clients + i] = sum;
}

template <class Tile, class T>
void run(const GramArgs<T>& args, cuda::Stream stream) {
  const int64_t side = ceil_div(args.from.clients, Tile::kRows);
  cuda::launch(gram_kernel<T, Tile>, cuda::grid_size(side * (side + 1) / 2 * args.groups),
               Tile::kThreads, sizeof(typename Tile::Shared), stream, args);
}

}  // namespace

template <class T>
void gram(const GramArgs<T>& args, cuda::Stream stream) {
  const int64_t clients = args.from.clients;
  if (clients <= kFewClients) {
    run<cuda::TileProduct<double, 32, 32>>(args, stream);
  } else {
    run<cuda::TileProduct<double, 64, 64>>(args, stream);
  }
  cuda::launch(add_groups_kernel<T>, cuda::grid_size(ceil_div(clients * clients, kSumThreads)),
               kSumThreads, 0, stream, args);
}

template void gram(const GramArgs<float>&, cuda::Stream);
template void gram(const GramArgs<double>&, cuda::Stream);

}  // namespace metadnas::aggregate_cuda
