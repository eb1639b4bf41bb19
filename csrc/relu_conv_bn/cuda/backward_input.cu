// Backward: the gradient of x, grad_z times the weights.
#include "relu_conv_bn/cuda/grad_z.cuh"
#include "relu_conv_bn/cuda/kernels.h"

namespace metadnas::relu_conv_bn {
namespace {

template <class T, int kColumns>
using Tile = cuda::TileProduct<T, kTilePixels, kColumns>;

template <class T, int kColumns>
struct Shared {
  typename Tile<T, kColumns>::Shared product;
  Offsets offsets[kTilePixels];
};

template <class T, class S>
struct InputGradient {
  BackwardArgs<T, S> args;
  Cut cut;  // columns are input channels
  const T* coefficients;
};

template <int kColumns, class T, class S>
__global__ void __launch_bounds__(Tile<T, kColumns>::kThreads, Tile<T, kColumns>::kBlocks)
    input_gradient_kernel(InputGradient<T, S> p) {
  using Own = Tile<T, kColumns>;
  auto& shared = *cuda::shared_memory<Shared<T, kColumns>>();
  const Shape& shape = p.args.shape;
  const Place place(p.cut);
  const int64_t pixel = place.tile * kTilePixels;
  const int live = pixels_before(counted_pixels(p.args, place.client), place.tile);
  const int present = pixels_before(all_pixels(p.args), place.tile);
  for (int i = threadIdx.x; i < present; i += Own::kThreads) {
    shared.offsets[i] = Offsets::of(shape, place.grid, pixel + i);
  }
  __syncthreads();
  const GradZ<T, S> grad_z(p.args, p.coefficients, place.client);
  const int channel = place.grid * shape.grid_channels();
  const int first = place.column_tile * kColumns;
  const T* weights = p.args.params + place.client * p.args.params_stride +
                     int64_t{channel} * shape.in_channels + first;
  Own tile;
  if (live > 0) {
    tile.template add<cuda::Along::kDepth, cuda::Along::kSide>(
        shared.product, shape.grid_channels(),
        [&](int row, int64_t k) {
          return row < live ? grad_z.at(pixel + row, channel + static_cast<int>(k)) : T{0};
        },
        [&](int64_t k, int column) {
          return first + column < shape.in_channels ? weights[k * shape.in_channels + column]
                                                    : T{0};
        });
  }
  const int64_t start = place.client * shape.images * shape.in_image() + first;
#pragma unroll
  for (int r = 0; r < Own::kEach; ++r) {
    const int row = Own::row() + r;
    if (row >= present) continue;
    const Offsets offsets = shared.offsets[row];
#pragma unroll
    for (int c = 0; c < Own::kEach; ++c) {
      const int column = Own::column() + c;
      if (first + column >= shape.in_channels) continue;
      if (offsets.own != Offsets::kOutside) {
        const int64_t at = start + offsets.own + column;
        const bool passes = row < live && !(p.args.relu && cuda::loaded(p.args.x[at]) <= 0);
        p.args.grad_x[at] = cuda::Stored<S>::of(passes ? tile.sums[r][c] : T{0});
      }
      if (offsets.rest != Offsets::kOutside) {
        p.args.grad_x[start + offsets.rest + column] = cuda::Stored<S>::of(T{0});
      }
    }
  }
}

}  // namespace

template <class T, class S>
void input_gradient(const BackwardArgs<T, S>& args, const T* coefficients, cuda::Stream stream) {
  const Shape& shape = args.shape;
  with_columns<T>(shape.in_channels, [&]<int kColumns>() {
    using Own = Tile<T, kColumns>;
    const Cut cut = cut_for<kColumns>(shape, shape.in_channels);
    cuda::launch(input_gradient_kernel<kColumns, T, S>, cuda::grid_size(cut.blocks(shape.clients)),
                 Own::kThreads, sizeof(Shared<T, kColumns>), stream, {args, cut, coefficients});
  });
}

template void input_gradient(const BackwardArgs<float, float>&, const float*, cuda::Stream);
template void input_gradient(const BackwardArgs<double, double>&, const double*, cuda::Stream);
template void input_gradient(const BackwardArgs<float, __nv_bfloat16>&, const float*, cuda::Stream);
template void input_gradient(const BackwardArgs<float, __half>&, const float*, cuda::Stream);

}  // namespace metadnas::relu_conv_bn
