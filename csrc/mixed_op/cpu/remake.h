// Results of a forward pass that were not kept, made again one image at a time.
#pragma once

#include "mixed_op/cpu/unit.h"

namespace metadnas::METADNAS_ISA {

// Scratch of one task. `in` holds relu(x) of the image at hand wherever a unit has to be made
// again.
template <class T>
struct Remaker {
  const Context<T>& context;
  PaddedImage<T> in;
  T* z = nullptr;  // (H', W', C)
  T* strip = nullptr;
  ChunkMoments<T>* sums = nullptr;

  explicit Remaker(const Context<T>& context)
      : context(context), in(context.layout.input_image()) {}

  size_t bytes() const {
    return static_cast<size_t>(in.size() + context.out_size() + strip_size()) * sizeof(T) +
           static_cast<size_t>(context.layout.blocks) * sizeof(ChunkMoments<T>) + 4 * 64;
  }
  void take(Arena& arena) {
    in.data = arena.take<T>(in.size());
    in.clear();
    z = arena.take<T>(context.out_size());
    strip = arena.take<T>(strip_size());
    sums = arena.take<ChunkMoments<T>>(context.layout.blocks);
  }

  void read_input(const Task& task, int64_t image) const {
    pad_relu(context.layout, context.x_image(task.client, image), context.args.x.pitch, in);
  }
  // The result of a unit that reads x; valid until the next call.
  const T* result(const Task& task, int64_t image, int unit) const {
    if (const T* kept = context.z_image(unit, task.client, image)) return kept;
    unit_forward(context, context.plan.units[unit], context.packed(task.client, unit), in, z, strip,
                 sums);
    return z;
  }

 private:
  int64_t strip_size() const {
    return int64_t{2} * context.layout.blocks * context.layout.out_strip.capacity * kLanes<T>;
  }
};

}  // namespace metadnas::METADNAS_ISA
