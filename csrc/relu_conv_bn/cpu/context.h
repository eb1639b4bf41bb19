// What all stages of one call share: packed weights, coefficients, the cut into tasks.
#pragma once

#include "common/batch_norm.h"
#include "common/parallel.h"
#include "common/strip_product.h"
#include "relu_conv_bn/args.h"

namespace metadnas::METADNAS_ISA::relu_conv_bn {

using metadnas::relu_conv_bn::Args;
using metadnas::relu_conv_bn::BackwardArgs;
using metadnas::relu_conv_bn::ForwardArgs;
using metadnas::relu_conv_bn::Shape;

// A chunk of one client's output pixels, counted over all of its images.
struct Task {
  int64_t client;
  int64_t chunk;
  int64_t begin;
  int64_t end;
};

template <class T>
class Context {
 public:
  explicit Context(const Args<T>& args) : args(args), shape(args.shape), grain_(grain(shape)) {}

  const Args<T>& args;
  const Shape& shape;

  // The cut depends on a client's own pixels only: results depend neither on the number of threads
  // nor on the cohort, nor on images that do not count.
  ChunkCut cut(int64_t client) const { return {args.count(client) * shape.out_pixels(), grain_}; }
  int64_t most_chunks() const {
    return ChunkCut{shape.images * shape.out_pixels(), grain_}.chunks();
  }

  template <class Body>
  void for_each_task(Body&& body) const {
    const int64_t chunks = most_chunks();
    parallel_for_each(shape.clients * chunks, [&](int64_t i) {
      const int64_t client = i / chunks;
      const int64_t chunk = i % chunks;
      const ChunkCut own = cut(client);
      if (chunk >= own.chunks()) return;
      const int64_t begin = chunk * grain_;
      body(Task{client, chunk, begin, begin + own.size(chunk)});
    });
  }

  // A client's rows of `size` elements, one a chunk.
  template <class U>
  U* chunk_row(U* rows, const Task& task, int64_t size) const {
    return rows + (task.client * most_chunks() + task.chunk) * size;
  }

  int in_blocks() const { return blocks_of<T>(shape.in_channels); }
  int grid_blocks() const { return blocks_of<T>(shape.grid_channels()); }
  int live_in(int block) const { return live(shape.in_channels, block); }
  int live_out(int block) const { return live(shape.grid_channels(), block); }

  const T* params(int64_t client) const { return args.params + client * args.params_stride; }
  T* stats(int64_t client) const { return args.stats + client * 2 * shape.out_channels; }
  const T* x(int64_t client) const { return args.x + client * shape.images * shape.in_image(); }
  int64_t out_offset(const Task& task) const {
    return (task.client * shape.images * shape.out_pixels() + task.begin) * shape.out_channels;
  }

  // A grid may begin at any channel: room for a vector there.
  int norm_row() const { return (blocks_of<T>(shape.out_channels) + 1) * kLanes<T>; }
  void fill_norm(int64_t client, const NormVectors<T>& norm) const {
    norm.fill(shape.out_channels, stats(client),
              args.affine ? params(client) + shape.weights() : nullptr, args.eps);
  }
  NormVectors<T> norm(T* memory, int64_t client) const {
    return {norm_row(), memory + client * NormVectors<T>::size(norm_row())};
  }

 private:
  static int live(int channels, int block) {
    const int rest = channels - block * kLanes<T>;
    return rest < kLanes<T> ? rest : kLanes<T>;
  }

  // Pixels of a task: enough that its weight gradient is small beside what it reads.
  static int64_t grain(const Shape& shape) {
    const int64_t pixels = int64_t{8} * shape.out_channels;
    return pixels < 512 ? 512 : pixels;
  }

  int64_t grain_;
};

}  // namespace metadnas::METADNAS_ISA::relu_conv_bn
