#include <algorithm>

#include "mixed_op/cuda/frame.cuh"
#include "mixed_op/cuda/reduce.h"

namespace metadnas::mixed_op {
namespace {

template <class A>
__global__ void __launch_bounds__(kThreads)
    reduce_kernel(const __grid_constant__ ReduceParams<A> p) {
  const WeightGradPiece& piece = p.piece[blockIdx.y];
  const int64_t blocks = gridDim.x / p.clients;
  const int64_t client = blockIdx.x / blocks;
  const A* from = p.weight_grads + client * p.spans * p.row + piece.from;
  A* to = p.grad_params + client * p.grad_params_stride + piece.to;
  const int64_t first = blockIdx.x % blocks * kThreads + thread();
  for (int64_t i = first; i < piece.count; i += blocks * kThreads) {
    A sum{0};
#pragma unroll 4
    for (int64_t span = 0; span < p.spans; ++span) sum += from[span * p.row + i];
    to[i] = sum;
  }
}

}  // namespace

template <class A>
void reduce_weight_grads(const ReduceParams<A>& p, Stream stream) {
  int64_t most = 1;
  for (int i = 0; i < p.pieces; ++i) most = std::max(most, p.piece[i].count);
  const dim3 grid(grid_size(p.clients * ceil_div(most, kThreads)), grid_size(p.pieces));
  launch(reduce_kernel<A>, grid, kThreads, 0, stream, p);
}

template void reduce_weight_grads(const ReduceParams<float>&, Stream);
template void reduce_weight_grads(const ReduceParams<double>&, Stream);

}  // namespace metadnas::mixed_op
