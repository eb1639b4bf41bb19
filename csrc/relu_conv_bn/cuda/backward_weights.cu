// Backward: the gradient of the weights, chunks of pixels in parallel, then added up in order.
#include "relu_conv_bn/cuda/grad_z.cuh"
#include "relu_conv_bn/cuda/kernels.h"

namespace metadnas::relu_conv_bn {
namespace {

// Rows are input channels, columns those of a grid.
template <class T, int kColumns>
using Tile = cuda::TileProduct<T, 64, kColumns>;

constexpr int kAddThreads = 128;

template <class T, int kColumns>
struct Shared {
  typename Tile<T, kColumns>::Shared product;
  int64_t own[kWeightPixels];  // offsets of inputs
};

template <class T, class S>
struct WeightGradient {
  BackwardArgs<T, S> args;
  int64_t chunks;
  int row_tiles;
  int column_tiles;
  const T* coefficients;
  T* partial;  // [client][chunk][weight]
};

template <int kColumns, class T, class S>
__global__ void __launch_bounds__(Tile<T, kColumns>::kThreads, Tile<T, kColumns>::kBlocks)
    weight_gradient_kernel(WeightGradient<T, S> p) {
  using Own = Tile<T, kColumns>;
  auto& shared = *cuda::shared_memory<Shared<T, kColumns>>();
  const Shape& shape = p.args.shape;
  int64_t block = blockIdx.x;
  const int first_row = static_cast<int>(block % p.row_tiles) * Own::kRows;
  block /= p.row_tiles;
  const int first_column = static_cast<int>(block % p.column_tiles) * kColumns;
  block /= p.column_tiles;
  const int grid = static_cast<int>(block % shape.grids());
  block /= shape.grids();  // [client][chunk]
  const int64_t client = block / p.chunks;
  const int64_t begin = block % p.chunks * kWeightPixels;
  const int64_t left = counted_pixels(p.args, client) - begin;
  if (left <= 0) return;  // the whole block
  const int pixels = static_cast<int>(min(left, int64_t{kWeightPixels}));
  for (int i = threadIdx.x; i < pixels; i += Own::kThreads) {
    shared.own[i] = Offsets::of(shape, grid, begin + i).own;
  }
  __syncthreads();
  const S* x = p.args.x + client * shape.images * shape.in_image() + first_row;
  const GradZ<T, S> grad_z(p.args, p.coefficients, client);
  const int channel = grid * shape.grid_channels() + first_column;
  Own tile;
  tile.template add<cuda::Along::kSide, cuda::Along::kSide>(
      shared.product, pixels,
      [&](int row, int64_t k) {
        if (first_row + row >= shape.in_channels || shared.own[k] == Offsets::kOutside) return T{0};
        const T v = cuda::loaded(x[shared.own[k] + row]);
        return p.args.relu ? cuda::relu(v) : v;
      },
      [&](int64_t k, int column) {
        return first_column + column < shape.grid_channels()
                   ? grad_z.at(begin + k, channel + column)
                   : T{0};
      });
  T* to = p.partial + block * shape.weights();
#pragma unroll
  for (int c = 0; c < Own::kEach; ++c) {
    const int column = Own::column() + c;
#pragma unroll
    for (int r = 0; r < Own::kEach; ++r) {
      const int row = first_row + Own::row() + r;
      if (first_column + column >= shape.grid_channels() || row >= shape.in_channels) continue;
      to[int64_t{channel + column} * shape.in_channels + row] = tile.sums[r][c];
    }
  }
}

template <class T, class S>
__global__ void __launch_bounds__(kAddThreads) add_chunks_kernel(WeightGradient<T, S> p) {
  const Shape& shape = p.args.shape;
  const int64_t blocks = ceil_div(shape.weights(), kAddThreads);
  const int64_t client = blockIdx.x / blocks;
  const int64_t weight = blockIdx.x % blocks * kAddThreads + threadIdx.x;
  if (weight >= shape.weights()) return;
  const int64_t chunks = ceil_div(counted_pixels(p.args, client), kWeightPixels);
  const T* from = p.partial + client * p.chunks * shape.weights() + weight;
  double sum = 0;
  for (int64_t i = 0; i < chunks; ++i) sum += static_cast<double>(from[i * shape.weights()]);
  const int64_t row = shape.weights() + (p.args.affine ? 2 * shape.out_channels : 0);
  p.args.grad_params[client * row + weight] = static_cast<T>(sum);
}

}  // namespace

template <class T, class S>
void weight_gradient(const BackwardArgs<T, S>& args, const T* coefficients, T* partial,
                     cuda::Stream stream) {
  const Shape& shape = args.shape;
  WeightGradient<T, S> params{
      args,   ceil_div(shape.images * shape.out_pixels(), kWeightPixels), 0, 0, coefficients,
      partial};
  with_columns<T>(shape.grid_channels(), [&]<int kColumns>() {
    using Own = Tile<T, kColumns>;
    params.row_tiles = ceil_div(shape.in_channels, Own::kRows);
    params.column_tiles = ceil_div(shape.grid_channels(), kColumns);
    const int64_t tiles = int64_t{params.row_tiles} * params.column_tiles * shape.grids();
    cuda::launch(weight_gradient_kernel<kColumns, T, S>,
                 cuda::grid_size(shape.clients * params.chunks * tiles), Own::kThreads,
                 sizeof(Shared<T, kColumns>), stream, params);
  });
  cuda::launch(add_chunks_kernel<T, S>,
               cuda::grid_size(shape.clients * ceil_div(shape.weights(), kAddThreads)), kAddThreads,
               0, stream, params);
}

template void weight_gradient(const BackwardArgs<float, float>&, const float*, float*,
                              cuda::Stream);
template void weight_gradient(const BackwardArgs<double, double>&, const double*, double*,
                              cuda::Stream);
template void weight_gradient(const BackwardArgs<float, __nv_bfloat16>&, const float*, float*,
                              cuda::Stream);
template void weight_gradient(const BackwardArgs<float, __half>&, const float*, float*,
                              cuda::Stream);

}  // namespace metadnas::relu_conv_bn
