// What all stages of one call share: packed weights, normalisation vectors, tasks, results.
#pragma once

#include "common/batch_norm.h"
#include "common/parallel.h"
#include "mixed_op/cpu/scratch.h"

namespace metadnas::METADNAS_ISA {

// One unit's weights in the order the kernels read them, zero-padded to whole vectors.
template <class T>
struct PackedUnit {
  T* taps;        // [block][K * K][lane]
  T* flipped;     // the same, rotated by 180 degrees
  T* matrix;      // [in][out]
  T* transposed;  // [out][in]
};

// Images [begin, end) of one client: the grain of parallel work. The cut depends on the shapes
// only, so results do not depend on the number of threads, nor a client's on its cohort.
struct Task {
  int64_t client;
  int64_t begin;
  int64_t end;
};

template <class T>
class Context {
 public:
  explicit Context(const MixedOpArgs<T>& args)
      : args(args), plan(args.plan), geometry(args.geometry), layout(args.geometry) {
    weight_grad_size_ = weight_grad_offset(units());
    const int64_t bytes = weight_grad_size_ * static_cast<int64_t>(sizeof(T));
    int64_t most = (int64_t{16} << 20) / (bytes + 1);  // caps the memory of weight gradients
    most = most < 1 ? 1 : most > 16 ? 16 : most;
    images_per_task_ = (geometry.images + most - 1) / most;
    if (images_per_task_ < kMinImages) images_per_task_ = kMinImages;
    tasks_per_client = (geometry.images + images_per_task_ - 1) / images_per_task_;
    const int64_t results = units() * geometry.clients * geometry.images * out_size();
    streaming = geometry.channels % kLanes<T> == 0 &&
                reinterpret_cast<uintptr_t>(args.z) % METADNAS_VECTOR_BYTES == 0 &&
                results * static_cast<int64_t>(sizeof(T)) > kCacheBytes;
  }

  const MixedOpArgs<T>& args;
  const Plan& plan;
  const Geometry& geometry;
  Layout<T> layout;
  int64_t tasks_per_client;
  bool streaming;  // results are too many to stay in a cache: write them past it

  int units() const { return static_cast<int>(plan.units.size()); }
  int norms() const { return static_cast<int>(plan.norms.size()); }
  int64_t tasks() const { return geometry.clients * tasks_per_client; }
  ptrdiff_t out_row() const {
    return static_cast<ptrdiff_t>(geometry.out_width) * geometry.channels;
  }
  int64_t out_size() const { return geometry.out_pixels() * geometry.channels; }

  Task task(int64_t index) const {
    const int64_t client = index / tasks_per_client;
    const int64_t count = args.count(client);
    const int64_t begin = index % tasks_per_client * images_per_task_;
    const int64_t end = begin + images_per_task_;
    return {client, begin < count ? begin : count, end < count ? end : count};
  }

  int in_blocks(const Unit& unit) const {
    return unit.factorized() ? 2 * layout.blocks : layout.blocks;
  }
  // Channels a pointwise product runs over; a factorized reduce sees both grids, padding included.
  int in_channels(const Unit& unit) const {
    return unit.factorized() ? 2 * layout.padded_channels : geometry.channels;
  }
  int in_row(const Unit& unit) const { return in_blocks(unit) * kLanes<T>; }
  int64_t taps_size(const Unit& unit) const {
    return int64_t{unit.kernel} * unit.kernel * layout.padded_channels;
  }
  int64_t matrix_size(const Unit& unit) const {
    return int64_t{in_row(unit)} * layout.padded_channels;
  }
  // Elements of one task's weight gradients; a unit's are its taps, then its matrix [out][in].
  int64_t weight_grad_size() const { return weight_grad_size_; }
  int64_t weight_grad_offset(int unit) const {
    int64_t total = 0;
    for (int u = 0; u < unit; ++u) total += taps_size(plan.units[u]) + matrix_size(plan.units[u]);
    return total;
  }

  int64_t packed_size() const { return 2 * weight_grad_size_ * geometry.clients; }
  void pack(T* memory) {
    packed_ = memory;
    parallel_for_each(geometry.clients * units(),
                      [&](int64_t i) { pack_unit(i / units(), static_cast<int>(i % units())); });
  }
  PackedUnit<T> packed(int64_t client, int unit) const {
    const Unit& u = plan.units[unit];
    T* taps = packed_ + 2 * (client * weight_grad_size_ + weight_grad_offset(unit));
    T* flipped = taps + taps_size(u);
    T* matrix = flipped + taps_size(u);
    return {taps, flipped, matrix, matrix + matrix_size(u)};
  }

  int64_t norm_vectors_size() const {
    return geometry.clients * norms() * NormVectors<T>::size(layout.padded_channels);
  }
  void place_norms(T* memory) { norms_ = memory; }
  NormVectors<T> norm(int64_t client, int index) const {
    const int64_t size = NormVectors<T>::size(layout.padded_channels);
    return {layout.padded_channels, norms_ + (client * norms() + index) * size};
  }
  void fill_norm(int64_t client, int index) const {
    const int64_t affine = plan.norms[index].affine;
    norm(client, index)
        .fill(geometry.channels, stats(client, index),
              affine == kAbsent ? nullptr : params(client) + affine, args.eps);
  }

  // Pointwise results: those kept, and for a forward pass room for the others.
  int64_t transient_size() const {
    return plan.transients * geometry.clients * geometry.images * out_size();
  }
  void place_transient(T* memory) { transient_ = memory; }
  // Null in a backward pass if the unit's result was not kept.
  T* z_image(int unit, int64_t client, int64_t image) const {
    const Unit& u = plan.units[unit];
    const int64_t all = geometry.clients * geometry.images;
    const int64_t at = client * geometry.images + image;
    if (u.kept != kAbsent) return args.z + (u.kept * all + at) * out_size();
    return transient_ == nullptr ? nullptr : transient_ + (u.transient * all + at) * out_size();
  }

  const T* params(int64_t client) const { return args.params + client * args.params_stride; }
  T* stats(int64_t client, int norm) const {
    return args.stats + client * args.stats_stride + plan.norms[norm].slot * 2 * geometry.channels;
  }
  T weight(int64_t client, int64_t index) const {
    return args.weights[client * args.weights_stride + index];
  }
  template <class U>
  U* image(const Images<U>& images, int64_t client, int64_t image) const {
    return images.at(client * geometry.images + image);
  }
  const T* x_image(int64_t client, int64_t index) const { return image(args.x, client, index); }
  // Elements of x for each output row.
  ptrdiff_t x_row() const { return geometry.stride * geometry.width * args.x.pitch; }

 private:
  static constexpr int64_t kMinImages = 4;
  static constexpr int64_t kCacheBytes = int64_t{8} << 20;

  void pack_unit(int64_t client, int index) const {
    const Unit& unit = plan.units[index];
    const PackedUnit<T> to = packed(client, index);
    const T* from = params(client);
    const int channels = geometry.channels;
    const int padded = layout.padded_channels;
    constexpr int L = kLanes<T>;
    __builtin_memset(to.taps, 0,
                     static_cast<size_t>(2 * (taps_size(unit) + matrix_size(unit))) * sizeof(T));
    const int taps = unit.kernel * unit.kernel;
    for (int c = 0; c < channels && !unit.factorized(); ++c) {
      for (int k = 0; k < taps; ++k) {
        const T v = from[unit.depthwise + c * taps + k];
        to.taps[(c / L * taps + k) * L + c % L] = v;
        to.flipped[(c / L * taps + taps - 1 - k) * L + c % L] = v;
      }
    }
    const int row = in_row(unit);
    for (int out = 0; out < channels; ++out) {
      // The second half of a factorized reduce's outputs reads the second grid.
      const int grid = unit.factorized() && out >= channels / 2 ? padded : 0;
      for (int in = 0; in < channels; ++in) {
        const T v = from[unit.pointwise + static_cast<int64_t>(out) * channels + in];
        to.matrix[static_cast<int64_t>(grid + in) * padded + out] = v;
        to.transposed[static_cast<int64_t>(out) * row + grid + in] = v;
      }
    }
  }

  int64_t images_per_task_ = 0;
  int64_t weight_grad_size_ = 0;
  T* transient_ = nullptr;
  T* packed_ = nullptr;
  T* norms_ = nullptr;
};

}  // namespace metadnas::METADNAS_ISA
