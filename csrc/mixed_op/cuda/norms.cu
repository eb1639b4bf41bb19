// A block for every client and batch norm.
#include "common/cuda/reduce.cuh"
#include "mixed_op/cuda/frame.cuh"
#include "mixed_op/cuda/norms.h"

namespace metadnas::mixed_op {
namespace {

using cuda::block_sum;

// Threads dealt out to channels, and the parts of what each channel adds up.
struct Dealt {
  int channels;  // a power of two: those of one block
  int channel;
  int part;
  int parts;

  __device__ explicit Dealt(int width)
      : channels(width),
        channel(static_cast<int>(blockIdx.z) * width + thread() % width),
        part(thread() / width),
        parts(kThreads / width) {}

  // The sum over all parts, for every thread; `scratch` holds kThreads values.
  __device__ double sum(double value, double* scratch) const {
    __syncthreads();
    scratch[thread()] = value;
    __syncthreads();
    double total = 0;
    for (int p = 0; p < parts; ++p) total += scratch[p * channels + thread() % channels];
    return total;
  }
};

template <class S>
struct Moments {
  using A = Accumulate<S>;
  const SettleParams<S>& p;
  int64_t client;
  int partial;
  int channel;

  // Calls use(pixels, mean, M2) for every `parts`-th tile.
  template <class Use>
  __device__ void each(int part, int parts, Use&& use) const {
    const int channels = p.frame.channels, tiles = p.tiles.count();
    const int64_t stride = int64_t{p.partials} * 2 * channels;
    const A* from = p.moments + client * p.frame.images * tiles * stride +
                    int64_t{partial} * 2 * channels + channel;
    const int64_t count = p.frame.count(client) * tiles;
    const int step = parts % tiles;
    int tile = part % tiles;
    // Unrolled, several loads are under way at once.
#pragma unroll 4
    for (int64_t i = part; i < count; i += parts) {
      const A* at = from + i * stride;
      use(static_cast<double>(p.tiles.rows(tile) * p.tiles.columns(tile)),
          static_cast<double>(at[0]), static_cast<double>(at[channels]));
      tile += step;
      if (tile >= tiles) tile -= tiles;
    }
  }
};

// Chan's formula: mean and biased variance of all tiles together, zeros where there is no pixel.
template <class S>
__device__ void merge(const SettleParams<S>& p, const Moments<S>& moments, const Dealt& dealt,
                      bool live, double* scratch, Accumulate<S>* stats) {
  using A = Accumulate<S>;
  const double pixels = static_cast<double>(p.frame.count(moments.client)) * p.tiles.image_height *
                        p.tiles.image_width;
  double sum = 0, m2 = 0;
  const auto add = [&](double n, double mean, double) { sum += n * mean; };
  if (live) moments.each(dealt.part, dealt.parts, add);
  const double mean = pixels > 0 ? dealt.sum(sum, scratch) / pixels : dealt.sum(0, scratch);
  const auto add_squares = [&](double n, double own, double squares) {
    m2 += squares + n * (own - mean) * (own - mean);
  };
  if (live) moments.each(dealt.part, dealt.parts, add_squares);
  m2 = dealt.sum(m2, scratch);
  if (!live || dealt.part > 0) return;
  stats[moments.channel] = static_cast<A>(mean);
  stats[p.frame.channels + moments.channel] = pixels > 0 ? static_cast<A>(m2 / pixels) : A{0};
}

template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    settle_kernel(const __grid_constant__ SettleParams<S> p) {
  using A = Accumulate<S>;
  const NormTask& task = p.task[blockIdx.y];
  const int64_t client = blockIdx.x;
  const int channels = p.frame.channels;
  const Dealt dealt(p.width);
  const int c = dealt.channel;
  const bool live = c < channels;
  A* stats = p.stats + client * p.stats_stride + task.slot * 2 * channels;
  if (p.moments != nullptr) {
    merge(p, Moments<S>{p, client, task.partial, c}, dealt, live, shared_memory<double>(), stats);
  }
  if (!live || dealt.part > 0) return;
  A* to = p.frame.norm(client, task.norm) + c;
  const bool affine = task.affine != kAbsent;
  const A* gamma = affine ? p.frame.param(client, task.affine) + c : nullptr;
  to[kMean * channels] = stats[c];
  to[kInverse * channels] =
      static_cast<A>(1 / sqrt(static_cast<double>(stats[channels + c]) + p.eps));
  to[kGamma * channels] = affine ? gamma[0] : A{1};
  to[kBeta * channels] = affine ? gamma[channels] : A{0};
}

template <class S>
class Close {
  using A = Accumulate<S>;

 public:
  __device__ Close(const CloseParams<S>& p)
      : p_(p), task_(p.task[blockIdx.y]), client_(blockIdx.x), scratch_(shared_memory<double>()) {}

  __device__ void run() {
    double grad_weight = 0;
    if (task_.product_row != kAbsent) {
      const Dealt dealt(p_.width);
      for (int first = 0; first < p_.frame.channels; first += p_.width) {
        const int c = first + thread() % p_.width;
        const bool live = c < p_.frame.channels;
        const double grad = total(dealt, task_.grad_row, c, live);
        const double product = total(dealt, task_.product_row, c, live);
        if (live && dealt.part == 0) grad_weight += close(c, grad, product);
      }
    }
    if (task_.weight == kAbsent) return;
    __syncthreads();
    grad_weight = block_sum<kThreads>(grad_weight, scratch_);
    if (thread() > 0) return;
    p_.grad_weights[client_ * p_.frame.weights_stride + task_.weight] = static_cast<A>(grad_weight);
  }

 private:
  // Over all pieces of the images that count.
  __device__ double total(const Dealt& dealt, int row, int channel, bool live) const {
    const int64_t stride = int64_t{p_.rows} * p_.frame.channels;
    const A* from = p_.sums + client_ * p_.frame.images * p_.pieces * stride +
                    int64_t{row} * p_.frame.channels + channel;
    const int64_t count = live ? p_.frame.count(client_) * p_.pieces : 0;
    double sum = 0;
#pragma unroll 4
    for (int64_t i = dealt.part; i < count; i += dealt.parts) {
      sum += static_cast<double>(from[i * stride]);
    }
    return dealt.sum(sum, scratch_);
  }

  // One channel; returns its part of the mixing weight's gradient.
  __device__ double close(int c, double grad, double product) const {
    if (task_.norm == kAbsent) return product;  // the identity
    const int channels = p_.frame.channels;
    const A* norm = p_.frame.norm(client_, task_.norm) + c;
    const double inverse = norm[kInverse * channels], gamma = norm[kGamma * channels];
    const double weight = task_.weight == kAbsent ? 1 : p_.frame.weight(client_, task_.weight);
    const double scale = weight * gamma * inverse;
    const double pixels = static_cast<double>(p_.frame.count(client_) * p_.pixels);
    const bool batch = p_.training && pixels > 0;
    A* to = p_.frame.gradient(client_, task_.norm) + c;
    to[kScale * channels] = static_cast<A>(scale);
    to[kSlope * channels] =
        batch ? static_cast<A>(-scale * inverse * inverse * product / pixels) : A{0};
    to[kShift * channels] = batch ? static_cast<A>(-scale * grad / pixels) : A{0};
    if (task_.affine != kAbsent && p_.grad_params != nullptr) {
      A* affine = p_.grad_params + client_ * p_.grad_params_stride + task_.affine + c;
      affine[0] = static_cast<A>(weight * inverse * product);
      affine[channels] = static_cast<A>(weight * grad);
    }
    return gamma * inverse * product + static_cast<double>(norm[kBeta * channels]) * grad;
  }

  const CloseParams<S>& p_;
  const CloseTask task_;
  const int64_t client_;
  double* const scratch_;
};

template <class S>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    close_kernel(const __grid_constant__ CloseParams<S> p) {
  Close<S>(p).run();
}

constexpr size_t kScratch = kThreads * sizeof(double);

}  // namespace

template <class S>
void settle_norms(const SettleParams<S>& p, Stream stream) {
  const dim3 grid(grid_size(p.frame.clients), grid_size(p.tasks),
                  grid_size(ceil_div(p.frame.channels, p.width)));
  launch(settle_kernel<S>, grid, kThreads, kScratch, stream, p);
}

template <class S>
void close_norms(const CloseParams<S>& p, Stream stream) {
  const dim3 grid(grid_size(p.frame.clients), grid_size(p.tasks));
  launch(close_kernel<S>, grid, kThreads, kScratch, stream, p);
}

template void settle_norms(const SettleParams<float>&, Stream);
template void settle_norms(const SettleParams<double>&, Stream);
template void settle_norms(const SettleParams<__nv_bfloat16>&, Stream);
template void settle_norms(const SettleParams<__half>&, Stream);
template void close_norms(const CloseParams<float>&, Stream);
template void close_norms(const CloseParams<double>&, Stream);
template void close_norms(const CloseParams<__nv_bfloat16>&, Stream);
template void close_norms(const CloseParams<__half>&, Stream);

}  // namespace metadnas::mixed_op
