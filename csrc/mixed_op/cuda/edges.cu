#include "mixed_op/cuda/edges.h"
#include "mixed_op/cuda/pool.cuh"
#include "mixed_op/cuda/walk.cuh"

namespace metadnas::mixed_op {
namespace {

constexpr int kCombined = 2;  // pixels of a thread in stage C
constexpr int kSummed = 8;    // and at most in the sums

// Value = scale * (z - mean) of one candidate, V channels.
template <class S, int V>
struct Coefficients {
  using A = Accumulate<S>;
  A mean[V];
  A scale[V];

  // constant += weight * beta
  __device__ Coefficients(const Frame<S>& frame, int64_t client, const TermAt& at, int channel,
                          A (&constant)[V]) {
    const A* norm = frame.norm(client, at.norm) + channel;
    const A weight = frame.weight(client, at.weight);
    A gamma[V], beta[V];
    load<V>(norm, mean);
    load<V>(norm + kInverse * frame.channels, scale);
    load<V>(norm + kGamma * frame.channels, gamma);
    load<V>(norm + kBeta * frame.channels, beta);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      scale[i] *= gamma[i] * weight;
      constant[i] += beta[i] * weight;
    }
  }
  __device__ void add(const A (&value)[V], A (&to)[V]) const {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] += scale[i] * (value[i] - mean[i]);
  }
};

template <class S, int V>
class Combine {
  using A = Accumulate<S>;

 public:
  __device__ Combine(const EdgesParams<S>& p, const Walk<V>& walk)
      : p_(p),
        channel_(walk.channel),
        image_(walk.image),
        client_(walk.client),
        first_(walk.piece * kCombined * walk.lanes + walk.lane),
        step_(walk.lanes) {}

  __device__ void run() {
    if (!p_.frame.counted(client_, image_)) return clear();
    A largest[kCombined][V], mean[kCombined][V];
    if (p_.pools) {
      each([&](int k, int pixel) {
        const auto pooled = pool_pixel<V>(p_.x.at(image_) + channel_, p_.x.pitch, p_.shape,
                                          pixel / p_.out_width, pixel % p_.out_width);
#pragma unroll
        for (int i = 0; i < V; ++i) {
          largest[k][i] = pooled.largest[i];
          mean[k][i] = pooled.mean[i];
        }
      });
    }
    for (int e = 0; e < p_.edges; ++e) write(e, largest, mean);
  }

 private:
  // Calls use(k, pixel) for the thread's pixels.
  template <class Use>
  __device__ __forceinline__ void each(Use&& use) const {
#pragma unroll
    for (int k = 0; k < kCombined; ++k) {
      const int pixel = first_ + k * step_;
      if (pixel < p_.out_height * p_.out_width) use(k, pixel);
    }
  }
  __device__ S* out(int e, int pixel) const {
    const Images<S>& to = p_.edge[e].out;
    return to.at(image_) + pixel * to.pitch + channel_;
  }

  __device__ void clear() const {
    const A zeros[V] = {};
    for (int e = 0; e < p_.edges; ++e) {
      if (!p_.edge[e].add) each([&](int, int pixel) { store<V>(out(e, pixel), zeros); });
    }
  }

  __device__ void write(int e, const A (&largest)[kCombined][V], const A (&mean)[kCombined][V]) {
    const EdgeTerms<S>& terms = p_.edge[e].terms;
    A total[kCombined][V] = {}, constant[V] = {};
    for (int u = 0; u < terms.units; ++u) {
      const Coefficients<S, V> term(p_.frame, client_, terms.unit[u].at, channel_, constant);
      const S* z = terms.unit[u].z + image_ * p_.out_height * p_.out_width * p_.frame.channels;
      each([&](int k, int pixel) {
        A value[V];
        load<V>(z + static_cast<int64_t>(pixel) * p_.frame.channels + channel_, value);
        term.add(value, total[k]);
      });
    }
    if (terms.max_pool.norm != kAbsent) add_pool(terms.max_pool, largest, total, constant);
    if (terms.avg_pool.norm != kAbsent) add_pool(terms.avg_pool, mean, total, constant);
    if (terms.identity != kAbsent) add_identity(terms.identity, total);
    each([&](int k, int pixel) {
      A before[V] = {};
      if (p_.edge[e].add) load<V>(out(e, pixel), before);
#pragma unroll
      for (int i = 0; i < V; ++i) total[k][i] += constant[i] + before[i];
      store<V>(out(e, pixel), total[k]);
    });
  }

  __device__ void add_pool(const TermAt& at, const A (&values)[kCombined][V],
                           A (&total)[kCombined][V], A (&constant)[V]) const {
    const Coefficients<S, V> term(p_.frame, client_, at, channel_, constant);
    each([&](int k, int) { term.add(values[k], total[k]); });
  }

  __device__ void add_identity(int64_t at, A (&total)[kCombined][V]) const {
    const A weight = p_.frame.weight(client_, at);
    each([&](int k, int pixel) {
      A value[V];
      load<V>(p_.x.at(image_) + pixel * p_.x.pitch + channel_, value);
#pragma unroll
      for (int i = 0; i < V; ++i) total[k][i] += weight * value[i];
    });
  }

  const EdgesParams<S>& p_;
  const int channel_;
  const int64_t image_;
  const int64_t client_;
  const int first_;
  const int step_;
};

template <class S, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    combine_kernel(const __grid_constant__ EdgesParams<S> p) {
  const Walk<V> walk(p.walk, p.frame);
  if (walk.live) Combine<S, V>(p, walk).run();
}

// One edge's sums over a piece of an image: of grad, then of grad * (value - mean) for each value.
template <class S, int V>
class EdgeSums {
  using A = Accumulate<S>;
  static constexpr int kUnits = EdgeTerms<S>::kMostUnits;
  enum Row { kGrad = kUnits, kMaxPool, kAvgPool, kIdentity, kRows };

 public:
  static constexpr size_t kShared = kRows * V * kThreads * sizeof(A);

  __device__ explicit EdgeSums(const EdgesParams<S>& p)
      : p_(p),
        walk_(p.walk, p.frame),
        edge_(static_cast<int>(blockIdx.y)),
        terms_(p.edge[edge_].terms) {
    if (walk_.live) read_means();
  }

  __device__ void run() {
    const int pixels = p_.out_height * p_.out_width;
    const int each = p_.walk.each * walk_.lanes;
    const int end = min((walk_.piece + 1) * each, pixels);
    if (walk_.live && p_.frame.counted(walk_.client, walk_.image)) {
      for (int pixel = walk_.piece * each + walk_.lane; pixel < end; pixel += walk_.lanes) {
        add(pixel);
      }
    }
    write();
  }

 private:
  __device__ void read_means() {
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (u < terms_.units) read_mean(terms_.unit[u].at, mean_[u]);
    }
    if (terms_.max_pool.norm != kAbsent) read_mean(terms_.max_pool, mean_[kMaxPool]);
    if (terms_.avg_pool.norm != kAbsent) read_mean(terms_.avg_pool, mean_[kAvgPool]);
  }
  __device__ void read_mean(const TermAt& at, A (&to)[V]) const {
    load<V>(p_.frame.norm(walk_.client, at.norm) + walk_.channel, to);
  }

  __device__ void add(int pixel) {
    const Images<const S>& from = p_.edge[edge_].grad;
    const int channel = walk_.channel;
    A grad[V];
    load<V>(from.at(walk_.image) + pixel * from.pitch + channel, grad);
#pragma unroll
    for (int i = 0; i < V; ++i) sums_[kGrad][i] += grad[i];
    const int64_t at = walk_.image * p_.out_height * p_.out_width + pixel;
#pragma unroll
    for (int u = 0; u < kUnits; ++u) {
      if (u >= terms_.units) continue;
      A value[V];
      load<V>(terms_.unit[u].z + at * p_.frame.channels + channel, value);
      add_product(grad, value, mean_[u], sums_[u]);
    }
    const S* x = p_.x.at(walk_.image) + channel;
    if (terms_.max_pool.norm != kAbsent || terms_.avg_pool.norm != kAbsent) {
      const auto pooled =
          pool_pixel<V>(x, p_.x.pitch, p_.shape, pixel / p_.out_width, pixel % p_.out_width);
      add_product(grad, pooled.largest, mean_[kMaxPool], sums_[kMaxPool]);
      add_product(grad, pooled.mean, mean_[kAvgPool], sums_[kAvgPool]);
    }
    if (terms_.identity == kAbsent) return;
    A value[V];
    load<V>(x + pixel * p_.x.pitch, value);
    add_product(grad, value, mean_[kIdentity], sums_[kIdentity]);
  }

  static __device__ __forceinline__ void add_product(const A (&grad)[V], const A (&value)[V],
                                                     const A (&mean)[V], A (&to)[V]) {
#pragma unroll
    for (int i = 0; i < V; ++i) to[i] += grad[i] * (value[i] - mean[i]);
  }

  // Adds the threads' sums up, in their order, and writes the rows that the edge has.
  __device__ void write() const {
    A* const shared = shared_memory<A>();
    const int width = p_.walk.width * V;
    if (walk_.live) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        A* to = shared + (r * walk_.lanes + walk_.lane) * width + thread() % p_.walk.width * V;
#pragma unroll
        for (int i = 0; i < V; ++i) to[i] = sums_[r][i];
      }
    }
    __syncthreads();
    const int first = static_cast<int>(blockIdx.z) * width;
    for (int i = thread(); i < kRows * width; i += kThreads) {
      const int r = i / V / p_.walk.width, c = i - r * width;
      const int row = row_of(r), channel = first + c;
      if (row == kAbsent || channel >= p_.frame.channels) continue;
      const A* from = shared + r * walk_.lanes * width + c;
      A sum{0};
      for (int lane = 0; lane < walk_.lanes; ++lane) sum += from[lane * width];
      p_.sums[(int64_t{blockIdx.x} * p_.rows + row) * p_.frame.channels + channel] = sum;
    }
  }

  __device__ int row_of(int r) const {
    if (r < kUnits) return r < terms_.units ? terms_.unit[r].at.norm : kAbsent;
    if (r == kGrad) return p_.edge[edge_].grad_row;
    if (r == kMaxPool) return terms_.max_pool.norm;
    if (r == kAvgPool) return terms_.avg_pool.norm;
    return terms_.identity == kAbsent ? kAbsent : p_.edge[edge_].grad_row + 1;
  }

  const EdgesParams<S>& p_;
  const Walk<V> walk_;
  const int edge_;
  const EdgeTerms<S>& terms_;
  A mean_[kRows][V] = {};
  A sums_[kRows][V] = {};
};

template <class S, int V>
__global__ void __launch_bounds__(kThreads, kBlocks<S>)
    sums_kernel(const __grid_constant__ EdgesParams<S> p) {
  EdgeSums<S, V>(p).run();
}

}  // namespace

WalkCut cut_combine(const Geometry& geometry, int vector) {
  return cut_walk(geometry, vector, kCombined);
}
WalkCut cut_sums(const Geometry& geometry, int vector) {
  return cut_walk(geometry, vector, kSummed);
}

template <class S>
void combine(const EdgesParams<S>& p, int vector, Stream stream) {
  const dim3 grid = walk_grid(p.walk, p.frame, 1);
  launch(vector == 1 ? combine_kernel<S, 1> : combine_kernel<S, 4>, grid, kThreads, 0, stream, p);
}

template <class S>
void gradient_sums(const EdgesParams<S>& p, int vector, Stream stream) {
  const dim3 grid = walk_grid(p.walk, p.frame, p.edges);
  if (vector == 1) {
    return launch(sums_kernel<S, 1>, grid, kThreads, EdgeSums<S, 1>::kShared, stream, p);
  }
  launch(sums_kernel<S, 4>, grid, kThreads, EdgeSums<S, 4>::kShared, stream, p);
}

template void combine(const EdgesParams<float>&, int, Stream);
template void combine(const EdgesParams<double>&, int, Stream);
template void combine(const EdgesParams<__nv_bfloat16>&, int, Stream);
template void combine(const EdgesParams<__half>&, int, Stream);
template void gradient_sums(const EdgesParams<float>&, int, Stream);
template void gradient_sums(const EdgesParams<double>&, int, Stream);
template void gradient_sums(const EdgesParams<__nv_bfloat16>&, int, Stream);
template void gradient_sums(const EdgesParams<__half>&, int, Stream);

}  // namespace metadnas::mixed_op
