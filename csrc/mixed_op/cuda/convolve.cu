// Stages A and B: a block makes a tile of the results of some units, all channels of them.
#include "mixed_op/cuda/convolve.h"
#include "mixed_op/cuda/cut.h"
#include "mixed_op/cuda/depthwise.cuh"
#include "mixed_op/cuda/moments.cuh"
#include "mixed_op/cuda/product.cuh"

namespace metadnas::mixed_op {
namespace {

// Few results a thread leave registers for another block.
template <class S, int RC>
constexpr int kConvolveBlocks = RC < 4 && kBlocks<S> > 1 ? 3 : kBlocks<S>;

template <class S, int V, int RC>
class Block {
  using A = Accumulate<S>;

 public:
  __device__ explicit Block(const ConvolveParams<S>& p)
      : p_(p),
        channels_(p.frame.channels),
        at_(TileAt::of_block(p.cut.tiles, p.frame.images)),
        window_(shared_memory<A>()),
        values_(window_ + p.cut.shared.values) {}

  __device__ bool counted() const { return p_.frame.counted(at_.client, at_.image); }

  // resident: the window holds all channels of the unit's source already.
  __device__ void run(const ConvolveUnit<S>& unit, bool resident) {
    // The first half of a factorized reduce's results is of grid 0, the second of grid 1.
    const int grids = unit.kernel == 0 ? 2 : 1;
#pragma unroll 1
    for (int grid = 0; grid < grids; ++grid) {
      make(unit, grid, channels_ / 2 * grid, grid + 1 == grids ? channels_ : channels_ / 2,
           grid > 0 ? p_.cut.chunk >= channels_ : resident);
    }
  }

  // Of an image that does not count.
  __device__ void clear(const ConvolveUnit<S>& unit) const {
    for (int i = thread(); i < at_.rows() * at_.columns() * channels_; i += kThreads) {
      const int pixel = i / channels_;
      *result(unit, pixel / at_.columns(), pixel % at_.columns(), i % channels_) =
          Stored<S>::of(A{0});
    }
  }

 private:
  // Results [begin, end).
  __device__ void make(const ConvolveUnit<S>& unit, int grid, int begin, int end, bool resident) {
    const ConvolveCut& cut = p_.cut;
    const Matrix<A, true> matrix{p_.frame.param(at_.client, unit.pointwise), channels_, begin, end};
    const Product<A, RC, true> product{
        values_, cut.pitch(), cut.tiles.area,  channels_,
        matrix,  channels_,   cut.staged_rows, window_ + cut.shared.matrix,
        values_};
    stage_rows(product, 0);
    for (int first = 0; first < channels_; first += cut.chunk) {
      make_values(unit, grid, first, resident);
    }
    A sums[kQuad][RC] = {};
    const ProductAt<RC> own(cut.tiles.area, cut.groups);
    multiply_all<S>(product, own, sums);
    __syncthreads();
    if (own.live) write(unit, own, begin, end, sums);
    if (p_.moments == nullptr) return;
    __syncthreads();
    A* to = p_.moments + (int64_t{blockIdx.x} * p_.partials + unit.partial) * 2 * channels_;
    tile_moments(cut.tiles, at_, values_ + begin * cut.pitch(), cut.pitch(), end - begin,
                 to + begin, channels_);
  }

  // What the pointwise product reads, of channels [first, first + chunk).
  __device__ void make_values(const ConvolveUnit<S>& unit, int grid, int first, bool resident) {
    const ConvolveCut& cut = p_.cut;
    const int live = min(channels_ - first, cut.chunk.value);
    A* const taps = window_ + cut.shared.taps;
    if (first > 0) __syncthreads();
    if (unit.kernel > 0) {
      stage_taps(p_.frame.param(at_.client, unit.depthwise), unit.kernel * unit.kernel, first,
                 cut.chunk, channels_, false, taps);
    }
    if (!resident) fill(unit, first);
    wait_for_copies();
    __syncthreads();
    A* to = values_ + first * cut.pitch();
    if (unit.kernel > 0) {
      depthwise_tile(cut.tiles, cut.window, unit.kernel, unit.dilation, cut.chunk, live, window_,
                     taps, to, cut.pitch());
    } else {
      gather_grid(cut.tiles, cut.window, grid, cut.chunk, live, window_, to, cut.pitch());
    }
  }

  __device__ void fill(const ConvolveUnit<S>& unit, int first) {
    const int channel = first + window_channel<V>(p_.cut.chunk);
    if (channel >= channels_) return;
    const Window& w = p_.cut.window;
    const Rectified<S, V> source(p_.frame, unit.source, at_, p_.source_width, channel);
    constexpr int kUnderWay = RC == 4 ? 4 : 2;  // as registers allow
    fill_window<kUnderWay, V>(w, p_.cut.chunk, at_.row() * w.stride - w.reach,
                              at_.column() * w.stride - w.reach, p_.source_height, p_.source_width,
                              window_, source);
  }

  __device__ S* result(const ConvolveUnit<S>& unit, int row, int column, int channel) const {
    const Tiles& t = p_.cut.tiles;
    const int64_t pixel = (at_.image * t.image_height + at_.row() + row) * t.image_width;
    return unit.z + (pixel + at_.column() + column) * channels_ + channel;
  }

  // Results to memory and, as they are there, to values_ for their moments. Packs that begin before
  // `end` are written whole: what is beyond it comes later.
  __device__ void write(const ConvolveUnit<S>& unit, const ProductAt<RC>& own, int begin, int end,
                        const A (&sums)[kQuad][RC]) {
    constexpr int kPack = V == 1 ? 1 : RC < V ? RC : V;
    const Tiles& t = p_.cut.tiles;
    const int row = own.pixel / t.width, column = own.pixel % t.width;
    S* const to = result(unit, row, column, own.column);
#pragma unroll
    for (int j = 0; j < RC; j += kPack) {
      const int first = own.column + j;
      if (first >= end || first + kPack <= begin) continue;
      A kept[kPack][kQuad];
#pragma unroll
      for (int p = 0; p < kQuad; ++p) {
        A pixel[kPack];
        const bool exists = at_.holds(row, column + p);
#pragma unroll
        for (int i = 0; i < kPack; ++i) {
          pixel[i] = sums[p][j + i];
          kept[i][p] = exists ? loaded(Stored<S>::of(pixel[i])) : A{0};
        }
        if (!exists) continue;
        S* const at = to + int64_t{p} * channels_ + j;
        if (first < begin) keep_before(at, begin - first, pixel);
        store<kPack>(at, pixel);
      }
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        store<kQuad>(values_ + (first + i) * p_.cut.pitch() + own.pixel, kept[i]);
      }
    }
  }

  // The first `count` results of a pack are those that are there, of the grid before.
  template <int N>
  static __device__ void keep_before(const S* at, int count, A (&pixel)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < count) pixel[i] = loaded(at[i]);
    }
  }

  const ConvolveParams<S>& p_;
  const int channels_;
  const TileAt at_;
  A* const window_;
  A* const values_;
};

template <class S, int V, int RC>
__global__ void __launch_bounds__(kThreads, kConvolveBlocks<S, RC>)
    convolve_kernel(const __grid_constant__ ConvolveParams<S> p) {
  Block<S, V, RC> block(p);
  const int begin = static_cast<int>(blockIdx.y) * p.units_per_block;
  const int end = min(begin + p.units_per_block, p.units);
  if (!block.counted()) {
    for (int u = begin; u < end; ++u) block.clear(p.unit[u]);
    return;
  }
  for (int u = begin; u < end; ++u) {
    block.run(p.unit[u], u > begin);
  }
}

template <class S, int V, int RC>
void launch_convolve(const ConvolveParams<S>& p, Stream stream) {
  const int64_t blocks = p.frame.clients * p.frame.images * p.cut.tiles.count();
  const dim3 grid(grid_size(blocks), grid_size(ceil_div(p.units, p.units_per_block)));
  launch(convolve_kernel<S, V, RC>, grid, kThreads,
         static_cast<size_t>(p.cut.shared.total) * sizeof(Accumulate<S>), stream, p);
}

}  // namespace

ConvolveCut cut_convolve(const Geometry& geometry, int stride, int reach, int vector,
                         size_t element) {
  const int channels = geometry.channels;
  const auto make = [&](int pixels, int chunk) {
    ConvolveCut cut{};
    cut.tiles = make_tiles(geometry.out_height, geometry.out_width, pixels);
    cut.window = make_window(cut.tiles, stride, reach, chunk);
    cut.chunk = make_divisor(chunk);
    cut.columns = product_columns(cut.tiles.pixels(), channels, vector);
    if (cut.columns == 0) return std::pair(cut, size_t{0});
    cut.groups = make_divisor(ceil_div(channels, cut.columns));
    const int padded = cut.groups * cut.columns + kQuad;
    cut.staged_rows = staged_rows(channels, padded, element, 18 * 1024);
    SharedLayout layout;
    layout.take(chunk * cut.window.plane);
    cut.shared.taps = layout.take(25 * chunk);
    cut.shared.matrix = layout.take(cut.staged_rows * padded);
    cut.shared.values = layout.take(channels * cut.pitch());
    cut.shared.total = layout.total();
    return std::pair(cut, cut.shared.total * element);
  };
  return fitting_cut(channels, 64, make);
}

template <class S>
void convolve(const ConvolveParams<S>& p, int vector, Stream stream) {
  if (vector == 1) return launch_convolve<S, 1, 8>(p, stream);
  if (p.cut.columns == 2) return launch_convolve<S, 4, 2>(p, stream);
  if (p.cut.columns == 4) return launch_convolve<S, 4, 4>(p, stream);
  launch_convolve<S, 4, 8>(p, stream);
}

template void convolve(const ConvolveParams<float>&, int, Stream);
template void convolve(const ConvolveParams<double>&, int, Stream);
template void convolve(const ConvolveParams<__nv_bfloat16>&, int, Stream);
template void convolve(const ConvolveParams<__half>&, int, Stream);

}  // namespace metadnas::mixed_op
