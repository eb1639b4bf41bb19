// A thread has a strip of pixels of one channel in registers while it goes through the units.
#include "mixed_op/cuda/cut.h"
#include "mixed_op/cuda/depthwise.cuh"
#include "mixed_op/cuda/spread.h"

namespace metadnas::mixed_op {
namespace {

template <class S>
constexpr int kSpreadBlocks = kBlocks<S> > 1 ? 3 : 1;

// grad_d at the input's resolution: nothing between its pixels at stride 2. A factorized reduce's
// grids lie on the even and on the odd pixels.
template <class S>
class Upsampled {
 public:
  __device__ Upsampled(const SpreadParams<S>& p, const SpreadUnit<S>& unit, int64_t image,
                       int channel)
      : pitch_(p.frame.channels), width_(p.out_width), odd_(p.stride - 1) {
    const int64_t size = int64_t{p.out_height} * p.out_width * p.frame.channels;
    from_ = unit.grad_d + image * size + channel;
    shifted_ = unit.kernel == 0 ? p.frame.clients * p.frame.images * size : 0;
  }

  __device__ const S* at(int h, int w) const {
    const int odd = h & odd_;
    if (odd != (w & odd_) || (odd > 0 && shifted_ == 0)) return nullptr;
    const int pixel = (h >> odd_) * width_ + (w >> odd_);
    return from_ + odd * shifted_ + static_cast<int64_t>(pixel) * pitch_;
  }
  template <int V>
  __device__ void transform(Accumulate<S> (&)[V]) const {}

 private:
  const S* from_;
  int64_t shifted_;  // from the even to the odd pixels; 0: there are none
  int pitch_;
  int width_;
  int odd_;  // bit of the input's pixels
};

template <class S, int V>
class Block {
  using A = Accumulate<S>;

 public:
  __device__ explicit Block(const SpreadParams<S>& p)
      : p_(p),
        at_(TileAt::of_block(p.cut.tiles, p.frame.images)),
        strip_(p.cut.tiles, p.cut.chunk, thread()),
        first_(static_cast<int>(blockIdx.y) * p.cut.chunk),
        window_(shared_memory<A>()) {}

  __device__ const TileAt& at() const { return at_; }
  __device__ const StripAt& strip() const { return strip_; }
  __device__ int channel() const { return first_ + strip_.channel; }
  __device__ bool live() const {
    return thread() < StripAt::count(p_.cut.tiles, p_.cut.chunk) && channel() < p_.frame.channels;
  }

  // sums += what reaches the strip through the unit. Starts with a barrier.
  __device__ void add(const SpreadUnit<S>& unit, A (&sums)[kStrip]) const {
    const SpreadCut& cut = p_.cut;
    A* const taps = window_ + cut.taps;
    __syncthreads();
    if (unit.kernel > 0) {
      stage_taps(p_.frame.param(at_.client, unit.depthwise), unit.kernel * unit.kernel, first_,
                 cut.chunk, p_.frame.channels, true, taps);
    }
    fill(unit);
    wait_for_copies();
    __syncthreads();
    if (!live()) return;
    const A* plane = window_ + strip_.channel * cut.window.plane;
    if (unit.kernel == 0) {
      const A* in = plane + (strip_.row + cut.window.reach) * cut.window.row + strip_.column +
                    cut.window.reach;
#pragma unroll
      for (int j = 0; j < kStrip; ++j) sums[j] += in[j];
      return;
    }
    with_depthwise(unit.kernel, unit.dilation, 1, [&]<int K, int D, int S1>() {
      if constexpr (S1 == 1) {
        depthwise_strip<K, D, 1>(plane + first_tap<K, D, 1>(cut.window, strip_), cut.window.row,
                                 taps + strip_.channel, cut.chunk, sums);
      }
    });
  }

  // Calls use(j, pixel) for the strip's pixels that exist; pixel: of the image.
  template <class Use>
  __device__ __forceinline__ void each(Use&& use) const {
    if (!live()) return;
    const int64_t row = at_.row() + strip_.row;
#pragma unroll
    for (int j = 0; j < kStrip; ++j) {
      if (!at_.holds(strip_.row, strip_.column + j)) continue;
      use(j, row * p_.cut.tiles.image_width + at_.column() + strip_.column + j);
    }
  }

 private:
  __device__ void fill(const SpreadUnit<S>& unit) const {
    const int channel = first_ + window_channel<V>(p_.cut.chunk);
    if (channel >= p_.frame.channels) return;
    const Tiles& t = p_.cut.tiles;
    fill_window<4, V>(p_.cut.window, p_.cut.chunk, at_.row() - p_.cut.window.reach,
                      at_.column() - p_.cut.window.reach, t.image_height, t.image_width, window_,
                      Upsampled<S>(p_, unit, at_.image, channel));
  }

  const SpreadParams<S>& p_;
  const TileAt at_;
  const StripAt strip_;
  const int first_;
  A* const window_;
};

// Sums over a tile of each channel, in the order of the strips. `rows` of them are in `own`.
template <int kRows, class A>
__device__ void tile_sums(const SpreadCut& cut, const A (&own)[kRows], int live, A* shared, A* to,
                          int stride) {
  const int items = StripAt::count(cut.tiles, cut.chunk);
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (thread() < items) shared[r * items + thread()] = own[r];
  }
  __syncthreads();
  for (int i = thread(); i < kRows * cut.chunk; i += kThreads) {
    const int r = i / cut.chunk, c = i % cut.chunk;
    if (c >= live) continue;
    A sum{0};
    for (int s = c; s < items; s += cut.chunk) sum += shared[r * items + s];
    to[r * stride + c] = sum;
  }
}

template <class S, int V>
__global__ void __launch_bounds__(kThreads, kSpreadBlocks<S>)
    middle_kernel(const __grid_constant__ SpreadMiddleParams<S> p) {
  using A = Accumulate<S>;
  const Block<S, V> block(p);
  if (!p.frame.counted(block.at().client, block.at().image)) return;
  const auto& unit = p.unit[blockIdx.z];
  const int channels = p.frame.channels;
  A grad[kStrip] = {};
  block.add(unit.spread, grad);
  A sums[2] = {};
  if (block.live()) {
    const A* norm = p.frame.norm(block.at().client, unit.norm) + block.channel();
    const A mean = norm[0], beta = norm[kBeta * channels];
    const A scale = norm[kInverse * channels] * norm[kGamma * channels];
    const int64_t pixels = int64_t{p.out_height} * p.out_width;
    const int64_t first = block.at().image * pixels * channels + block.channel();
    block.each([&](int j, int64_t pixel) {
      const int64_t i = first + pixel * channels;
      const A centred = loaded(unit.z[i]) - mean;
      const A g = relu_gradient(centred * scale + beta, grad[j]);
      unit.to[i] = Stored<S>::of(g);
      sums[0] += g;
      sums[1] += g * centred;
    });
  }
  const int chunk = p.cut.chunk, begin = static_cast<int>(blockIdx.y) * chunk;
  A* to = p.sums + (int64_t{blockIdx.x} * p.rows + unit.row) * channels + begin;
  tile_sums(p.cut, sums, min(chunk, channels - begin), shared_memory<A>(), to, channels);
}

// sums[j] += what reaches pixel (row, column + j) of the input through both pools at stride T. Each
// pooled pixel around the strip is read once and feeds those of its nine that are in it. pools: of
// the image and the channel.
template <int T, class S>
__device__ __forceinline__ void add_pools(const SpreadInputParams<S>& p, int64_t pools, int row,
                                          int column, Accumulate<S> (&sums)[kStrip]) {
  constexpr int kBefore = T == 1 ? 1 : 0;  // pooled pixels before the strip's first one
  for (int kh = 0; kh < 3; ++kh) {
    const int from = row + 1 - kh;
    if (from % T != 0 || from < 0 || from / T >= p.out_height) continue;
    const int64_t line = pools + static_cast<int64_t>(from / T) * p.out_width * p.frame.channels;
#pragma unroll
    for (int i = 0; i < kStrip / T + 1 + kBefore; ++i) {
      const int pooled = column / T - kBefore + i;
      if (pooled < 0 || pooled >= p.out_width) continue;
      const int64_t at = line + static_cast<int64_t>(pooled) * p.frame.channels;
      const auto mean = p.avg_pool ? loaded(p.pools.to_mean[at]) : Accumulate<S>{0};
      const auto largest = p.max_pool ? loaded(p.pools.to_max[at]) : Accumulate<S>{0};
      const int winner = p.max_pool ? p.pools.winner[at] - kh * 3 : kAbsent;
#pragma unroll
      for (int kw = 0; kw < 3; ++kw) {
        const int j = (i - kBefore) * T + kw - 1;
        if (j < 0 || j >= kStrip) continue;
        sums[j] += mean;
        if (winner == kw) sums[j] += largest;
      }
    }
  }
}

template <class S, int V>
__global__ void __launch_bounds__(kThreads, kSpreadBlocks<S>)
    input_kernel(const __grid_constant__ SpreadInputParams<S> p) {
  using A = Accumulate<S>;
  const Block<S, V> block(p);
  const int64_t image = block.at().image;
  A sums[kStrip] = {};
  if (!p.frame.counted(block.at().client, image)) {
    block.each([&](int, int64_t pixel) {
      p.to.at(image)[pixel * p.to.pitch + block.channel()] = Stored<S>::of(A{0});
    });
    return;
  }
  for (int u = 0; u < p.units; ++u) block.add(p.unit[u], sums);
  const int c = block.channel();
  block.each([&](int j, int64_t pixel) {
    sums[j] = relu_gradient(loaded(p.x.at(image)[pixel * p.x.pitch + c]), sums[j]);
  });
  if (block.live() && (p.max_pool || p.avg_pool)) {
    const int64_t pools = image * p.out_height * p.out_width * p.frame.channels + c;
    const int row = block.at().row() + block.strip().row;
    const int column = block.at().column() + block.strip().column;
    p.stride == 1 ? add_pools<1>(p, pools, row, column, sums)
                  : add_pools<2>(p, pools, row, column, sums);
  }
  block.each([&](int j, int64_t pixel) {
    A total = sums[j];
    if (p.base.present()) total += loaded(p.base.at(image)[pixel * p.base.pitch + c]);
    for (int i = 0; i < p.identities; ++i) {
      const auto& from = p.identity[i];
      total += p.frame.weight(block.at().client, from.weight) *
               loaded(from.grad.at(image)[pixel * from.grad.pitch + c]);
    }
    p.to.at(image)[pixel * p.to.pitch + c] = Stored<S>::of(total);
  });
}

template <class S, class Params>
void launch_spread(void (*kernel)(Params), const Params& p, int units, Stream stream) {
  const dim3 grid(grid_size(p.frame.clients * p.frame.images * p.cut.tiles.count()),
                  grid_size(ceil_div(p.frame.channels, p.cut.chunk)), grid_size(units));
  launch(kernel, grid, kThreads, static_cast<size_t>(p.cut.total) * sizeof(Accumulate<S>), stream,
         p);
}

}  // namespace

SpreadCut cut_spread(int height, int width, int channels, int reach, size_t element) {
  const auto make = [&](int pixels, int chunk) {
    SpreadCut cut{};
    cut.tiles = make_tiles(height, width, pixels);
    cut.window = make_window(cut.tiles, 1, reach, chunk);
    cut.chunk = make_divisor(chunk);
    const int items = StripAt::count(cut.tiles, chunk);
    if (items > kThreads) return std::pair(cut, size_t{0});
    SharedLayout layout;
    layout.take(chunk * cut.window.plane);
    cut.taps = layout.take(25 * chunk);
    layout.extend_to(2 * items);
    cut.total = layout.total();
    return std::pair(cut, cut.total * element);
  };
  return fitting_cut(channels, 32, make);
}

template <class S>
void spread_middle(const SpreadMiddleParams<S>& p, int vector, Stream stream) {
  vector == 1 ? launch_spread<S>(middle_kernel<S, 1>, p, p.units, stream)
              : launch_spread<S>(middle_kernel<S, 4>, p, p.units, stream);
}

template <class S>
void spread_input(const SpreadInputParams<S>& p, int vector, Stream stream) {
  vector == 1 ? launch_spread<S>(input_kernel<S, 1>, p, 1, stream)
              : launch_spread<S>(input_kernel<S, 4>, p, 1, stream);
}

template void spread_middle(const SpreadMiddleParams<float>&, int, Stream);
template void spread_middle(const SpreadMiddleParams<double>&, int, Stream);
template void spread_middle(const SpreadMiddleParams<__nv_bfloat16>&, int, Stream);
template void spread_middle(const SpreadMiddleParams<__half>&, int, Stream);
template void spread_input(const SpreadInputParams<float>&, int, Stream);
template void spread_input(const SpreadInputParams<double>&, int, Stream);
template void spread_input(const SpreadInputParams<__nv_bfloat16>&, int, Stream);
template void spread_input(const SpreadInputParams<__half>&, int, Stream);

}  // namespace metadnas::mixed_op
