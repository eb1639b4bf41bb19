// A block takes one unit on some tiles of one client, and keeps its sums of weight gradients until
// the last one.
#include "mixed_op/cuda/depthwise.cuh"
#include "mixed_op/cuda/product.cuh"
#include "mixed_op/cuda/unit_gradient.h"

namespace metadnas::mixed_op {
namespace {

// A thread's elements of a range x range block of the matrix: (out + r * step, in + s * step).
struct OuterAt {
  int out;
  int in;
  int part;  // of the pixels
  int parts;
  bool live;

  __device__ explicit OuterAt(Divisor step)
      : out(thread() / step % step),
        in(thread() % step),
        part(thread() / step / step),
        parts(kThreads / step / step),
        live(part < parts) {}
};

// A thread's row of taps of a chunk's channels, and its part of the rows of pixels.
struct TapsAt {
  int channel;
  int kh;
  int part;
  int parts;
  bool live;

  __device__ TapsAt(Divisor chunk, int kernel)
      : channel(thread() % chunk),
        kh(thread() / chunk % kernel),
        part(thread() / chunk / kernel),
        parts(kTapThreads / chunk / kernel),
        live(part < parts) {}
  // The thread of a part that sums (channel, kh).
  __device__ static int owner(int chunk, int kernel, int part, int channel, int kh) {
    return (part * kernel + kh) * chunk + channel;
  }
};

template <class S, int V, int RC>
class Block {
  using A = Accumulate<S>;

 public:
  __device__ explicit Block(const GradientParams<S>& p)
      : p_(p),
        unit_(p.unit[blockIdx.y]),
        cut_(p.cut),
        channels_(p.frame.channels),
        out_first_(static_cast<int>(blockIdx.z) / p.cut.ranges * p.cut.range),
        in_first_(static_cast<int>(blockIdx.z) % p.cut.ranges * p.cut.range),
        outs_(min(p.cut.range, channels_ - out_first_)),
        ins_(min(p.cut.range, channels_ - in_first_)),
        client_(blockIdx.x / static_cast<unsigned>(p.cut.spans)),
        window_(shared_memory<A>()),
        dz_(window_ + p.cut.shared.dz),
        grad_d_(window_ + p.cut.shared.grad_d),
        values_(window_ + p.cut.shared.values),
        tap_sums_(window_ + p.cut.shared.tap_sums) {}

  __device__ void run() {
    const bool wanted = p_.weight_grads != nullptr;
    const bool makes_grad_d = out_first_ == 0 && (unit_.grad_d != nullptr || own_taps());
    const int grids = unit_.kernel == 0 ? 2 : 1;
    if (wanted && own_taps()) clear_taps();
    const int64_t span = blockIdx.x - client_ * cut_.spans;
    const int count = cut_.tiles.count();
    const int64_t tiles = p_.frame.count(client_) * count;
    const int64_t begin = span * cut_.span, end = min(begin + cut_.span, tiles);
    int64_t image = client_ * p_.frame.images + begin / count;
    int tile = static_cast<int>(begin % count);
    for (int64_t t = begin; t < end; ++t) {
      const TileAt at(cut_.tiles, client_, image, tile);
      __syncthreads();
      if (makes_grad_d && (first_tile_ || !matrix_stays())) stage_rows(product(0), 0);
      make_dz(at);
      wait_for_copies();
      for (int grid = 0; grid < grids; ++grid) {
        if (makes_grad_d) make_grad_d(at, grid);
        if (wanted) add_weight_grads(at, grid);
      }
      first_tile_ = false;
      if (++tile == count) tile = 0, ++image;
    }
    if (wanted) write_weight_grads();
  }

 private:
  // Whether this block sums the gradients of taps, of its range of input channels.
  __device__ bool own_taps() const {
    return p_.weight_grads != nullptr && out_first_ == 0 && unit_.kernel > 0;
  }
  __device__ int64_t pixel(const TileAt& at, int row, int column) const {
    return static_cast<int64_t>(at.row() + row) * cut_.tiles.image_width + at.column() + column;
  }

  // dz of all channels, or only of those whose weights this block has.
  __device__ void make_dz(const TileAt& at) const {
    const Divisor vectors = out_first_ == 0 ? cut_.vectors : cut_.range_vectors;
    const A* norm = p_.frame.norm(client_, unit_.norm);
    const A* gradient = p_.frame.gradient(client_, unit_.norm);
    const int64_t image = int64_t{cut_.tiles.image_height} * cut_.tiles.image_width * channels_;
    for (int i = thread(); i < vectors * cut_.tiles.pixels() / kQuad; i += kThreads) {
      const int c = out_first_ + i % vectors * V, p = i / vectors * kQuad;
      if (c >= channels_) continue;
      const int row = p / cut_.tiles.width, column = p % cut_.tiles.width;
      A mean[V], scale[V], slope[V], shift[V];
      load<V>(norm + c, mean);
      load<V>(gradient + c, scale);
      load<V>(gradient + kSlope * channels_ + c, slope);
      load<V>(gradient + kShift * channels_ + c, shift);
      const int64_t from = pixel(at, row, column);
      const S* const grad = unit_.grad.at(at.image) + from * unit_.grad.pitch + c;
      const S* const z = unit_.z + at.image * image + from * channels_ + c;
      A values[V][kQuad] = {};
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        if (!at.holds(row, column + k)) continue;
        A own_grad[V], own_z[V];
        load<V>(grad + k * unit_.grad.pitch, own_grad);
        load<V>(z + k * channels_, own_z);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          values[j][k] = scale[j] * own_grad[j] + (slope[j] * (own_z[j] - mean[j]) + shift[j]);
        }
      }
#pragma unroll
      for (int j = 0; j < V; ++j) store<kQuad>(dz_ + (c + j) * cut_.pitch() + p, values[j]);
    }
  }

  __device__ Product<A, RC, false> product(int grid) const {
    const bool factorized = unit_.kernel == 0;
    const int half = channels_ / 2;
    const int first = factorized && grid == 1 ? half : 0;
    const A* data = p_.frame.param(client_, unit_.pointwise) +
                    static_cast<int64_t>(first) * channels_ + in_first_;
    return {dz_ + first * cut_.pitch(),
            cut_.pitch(),
            cut_.tiles.area,
            factorized ? half : channels_,
            {data, channels_, 0, ins_},
            ins_,
            cut_.staged_rows,
            window_ + cut_.shared.matrix,
            grad_d_};
  }
  // Whether the matrix is the same for all tiles and fits.
  __device__ bool matrix_stays() const { return unit_.kernel > 0 && cut_.staged_rows >= channels_; }

  // The gradient behind the depthwise convolution, of this block's input channels. The first rows
  // of grid 0's matrix have been copied.
  __device__ void make_grad_d(const TileAt& at, int grid) {
    A sums[kQuad][RC] = {};
    if (grid > 0) {
      __syncthreads();
      stage_rows(product(grid), 0);
      wait_for_copies();
    }
    const ProductAt<RC> own(cut_.tiles.area, cut_.groups);
    multiply_all<S>(product(grid), own, sums);
    if (!own.live) return;
    const Tiles& tiles = cut_.tiles;
    const int row = own.pixel / tiles.width, column = own.pixel % tiles.width;
    const int64_t images = p_.frame.clients * p_.frame.images;
    const int64_t image = (grid * images + at.image) * tiles.image_height * tiles.image_width;
    S* to = unit_.grad_d + (image + pixel(at, row, column)) * channels_ + in_first_ + own.column;
    constexpr int kPack = V == 1 ? 1 : RC < V ? RC : V;
#pragma unroll
    for (int j = 0; j < RC; j += kPack) {
      if (own.column + j >= ins_) break;
      A kept[kPack][kQuad];
#pragma unroll
      for (int k = 0; k < kQuad; ++k) {
        A values[kPack];
#pragma unroll
        for (int i = 0; i < kPack; ++i) values[i] = kept[i][k] = sums[k][j + i];
        if (unit_.grad_d != nullptr && at.holds(row, column + k)) {
          store<kPack>(to + int64_t{k} * channels_ + j, values);
        }
      }
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        store<kQuad>(grad_d_ + (own.column + j + i) * cut_.pitch() + own.pixel, kept[i]);
      }
    }
  }

  __device__ void add_weight_grads(const TileAt& at, int grid) {
    for (int first = 0; first < ins_; first += cut_.chunk) {
      if (first > 0) __syncthreads();
      make_values(at, grid, first);
      if (own_taps()) add_taps(first);
    }
    __syncthreads();
    const int half = channels_ / 2;
    const bool factorized = unit_.kernel == 0;
    add_outer(factorized && grid == 1 ? half : 0, factorized && grid == 0 ? half : channels_);
  }

  // What the pointwise product read, of channels [first, first + chunk) of this block's range.
  __device__ void make_values(const TileAt& at, int grid, int first) const {
    const int live = min(cut_.chunk.value, ins_ - first);
    const Window& w = cut_.window;
    A* const taps = window_ + cut_.shared.taps;
    if (unit_.kernel > 0 && (first_tile_ || cut_.chunk < ins_)) {
      stage_taps(p_.frame.param(client_, unit_.depthwise), unit_.kernel * unit_.kernel,
                 in_first_ + first, cut_.chunk, channels_, false, taps);
    }
    const int own = window_channel<V>(cut_.chunk);
    if (own < live) {
      const Rectified<S, V> source(p_.frame, unit_.source, at, p_.source_width,
                                   in_first_ + first + own);
      constexpr int kUnderWay = 3;  // as registers allow
      fill_window<kUnderWay, V>(w, cut_.chunk, at.row() * w.stride - w.reach,
                                at.column() * w.stride - w.reach, p_.source_height, p_.source_width,
                                window_, source);
    }
    wait_for_copies();
    __syncthreads();
    A* to = values_ + first * cut_.pitch();
    if (unit_.kernel > 0) {
      depthwise_tile(cut_.tiles, w, unit_.kernel, unit_.dilation, cut_.chunk, live, window_, taps,
                     to, cut_.pitch());
    } else {
      gather_grid(cut_.tiles, w, grid, cut_.chunk, live, window_, to, cut_.pitch());
    }
  }

  // matrix_[o][i] += dz[o] * values[i], for results o of [begin, end).
  __device__ void add_outer(int begin, int end) {
    const OuterAt outer(cut_.outer_step);
    if (!outer.live) return;
    const int pitch = cut_.pitch();
    const A *dz[kOuter], *values[kOuter];
    bool takes[kOuter];
#pragma unroll
    for (int r = 0; r < kOuter; ++r) {
      const int out = min(outer.out + r * cut_.outer_step, outs_ - 1);
      dz[r] = dz_ + (out_first_ + out) * pitch;
      takes[r] = out_first_ + out >= begin && out_first_ + out < end;
      values[r] = values_ + min(outer.in + r * cut_.outer_step, ins_ - 1) * pitch;
    }
    const int pixels = cut_.tiles.pixels();
    for (int p = outer.part * kQuad; p < pixels; p += outer.parts * kQuad) {
      A v[kOuter][kQuad];
#pragma unroll
      for (int s = 0; s < kOuter; ++s) load<kQuad>(values[s] + p, v[s]);
#pragma unroll
      for (int r = 0; r < kOuter; ++r) {
        if (!takes[r]) continue;
        A d[kQuad];
        load<kQuad>(dz[r] + p, d);
#pragma unroll
        for (int s = 0; s < kOuter; ++s) {
#pragma unroll
          for (int k = 0; k < kQuad; ++k) matrix_[r][s] += d[k] * v[s][k];
        }
      }
    }
  }

  __device__ A* own_taps_at(int first) const {
    return tap_sums_ + (first / cut_.chunk * kTapThreads + thread()) * kMostTaps;
  }
  __device__ void clear_taps() const {
    if (thread() >= kTapThreads) return;
    for (int first = 0; first < ins_; first += cut_.chunk) {
      for (int k = 0; k < kMostTaps; ++k) own_taps_at(first)[k] = A{0};
    }
  }

  __device__ void add_taps(int first) const {
    with_depthwise(unit_.kernel, unit_.dilation, cut_.window.stride, [&]<int K, int D, int S2>() {
      const TapsAt own(cut_.chunk, K);
      if (!own.live || first + own.channel >= ins_) return;
      A* const sums = own_taps_at(first);
      A total[K] = {};
      const A* const plane = window_ + own.channel * cut_.window.plane;
      const A* const grad = grad_d_ + (first + own.channel) * cut_.pitch();
      for (int row = own.part; row < cut_.tiles.height; row += own.parts) {
        for (int column = 0; column < cut_.tiles.width; column += kStrip) {
          const StripAt at(row, column);
          const A* in = plane + first_tap<K, D, S2>(cut_.window, at) + own.kh * D * cut_.window.row;
          A d[kStrip];
          load<kStrip>(grad + row * cut_.tiles.width + column, d);
#pragma unroll
          for (int j = 0; j < (kStrip - 1) * S2 + (K - 1) * D + 1; ++j) {
            const A v = in[j];
#pragma unroll
            for (int k = 0; k < K; ++k) {
              const int offset = j - k * D;
              if (offset >= 0 && offset % S2 == 0 && offset / S2 < kStrip) {
                total[k] += v * d[offset / S2];
              }
            }
          }
        }
      }
#pragma unroll
      for (int k = 0; k < K; ++k) sums[k] += total[k];
    });
  }

  // The block's sums, its parts added up in their order, into the span's row.
  __device__ void write_weight_grads() const {
    A* const to = p_.weight_grads + int64_t{blockIdx.x} * p_.row + unit_.weight_grads;
    __syncthreads();
    A* const shared = window_;  // [part][out][in] of the range
    const int range = cut_.range, size = range * range, step = cut_.outer_step;
    const OuterAt outer(cut_.outer_step);
#pragma unroll
    for (int r = 0; r < kOuter; ++r) {
#pragma unroll
      for (int s = 0; s < kOuter; ++s) {
        const int out = outer.out + r * step, in = outer.in + s * step;
        if (outer.live && out < range && in < range) {
          shared[outer.part * size + out * range + in] = matrix_[r][s];
        }
      }
    }
    __syncthreads();
    for (int i = thread(); i < outs_ * ins_; i += kThreads) {
      const int out = i / ins_, in = i % ins_;
      A sum{0};
      for (int part = 0; part < outer.parts; ++part) {
        sum += shared[part * size + out * range + in];
      }
      to[static_cast<int64_t>(out_first_ + out) * channels_ + in_first_ + in] = sum;
    }
    if (own_taps()) write_taps(to + static_cast<int64_t>(channels_) * channels_);
  }

  __device__ void write_taps(A* to) const {
    const int kernel = unit_.kernel, count = kernel * kernel;
    const Divisor chunk = cut_.chunk;
    const int parts = TapsAt(chunk, kernel).parts;
    for (int i = thread(); i < ins_ * count; i += kThreads) {
      const int c = i / count, kh = i % count / kernel, kw = i % kernel;
      A sum{0};
      for (int part = 0; part < parts; ++part) {
        const int owner = TapsAt::owner(chunk, kernel, part, c % chunk, kh);
        sum += tap_sums_[(c / chunk * kTapThreads + owner) * kMostTaps + kw];
      }
      to[static_cast<int64_t>(in_first_) * count + i] = sum;
    }
  }

  const GradientParams<S>& p_;
  const GradientUnit<S>& unit_;
  const GradientCut& cut_;
  const int channels_;
  const int out_first_;
  const int in_first_;
  const int outs_;
  const int ins_;
  const int64_t client_;
  A* const window_;
  A* const dz_;
  A* const grad_d_;
  A* const values_;
  A* const tap_sums_;
  bool first_tile_ = true;  // what does not depend on the tile is not in shared memory yet
  A matrix_[kOuter][kOuter] = {};
};

template <class S, int V, int RC>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    gradient_kernel(const __grid_constant__ GradientParams<S> p) {
  Block<S, V, RC>(p).run();
}

template <class S, int V, int RC>
void launch_gradient(const GradientParams<S>& p, Stream stream) {
  // Without weight gradients, one block of results has them all.
  const int outs = p.weight_grads == nullptr ? 1 : p.cut.ranges;
  const dim3 grid(grid_size(p.frame.clients * p.cut.spans), grid_size(p.units),
                  grid_size(outs * p.cut.ranges));
  launch(gradient_kernel<S, V, RC>, grid, kThreads,
         static_cast<size_t>(p.cut.shared.total) * sizeof(Accumulate<S>), stream, p);
}

}  // namespace

template <class S>
void unit_gradient(const GradientParams<S>& p, int vector, Stream stream) {
  if (vector == 1) return launch_gradient<S, 1, 8>(p, stream);
  if (p.cut.columns == 2) return launch_gradient<S, 4, 2>(p, stream);
  if (p.cut.columns == 4) return launch_gradient<S, 4, 4>(p, stream);
  launch_gradient<S, 4, 8>(p, stream);
}

template void unit_gradient(const GradientParams<float>&, int, Stream);
template void unit_gradient(const GradientParams<double>&, int, Stream);
template void unit_gradient(const GradientParams<__nv_bfloat16>&, int, Stream);
template void unit_gradient(const GradientParams<__half>&, int, Stream);

}  // namespace metadnas::mixed_op
