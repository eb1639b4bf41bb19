// The forward pass: stages A, B, C with the statistics merged between them.
#pragma once

#include "mixed_op/cpu/stage_ab.h"
#include "mixed_op/cpu/stage_c.h"

namespace metadnas::METADNAS_ISA {

// Statistics of the norms `wanted` selects, from the images' partial ones, and their vectors.
template <class T, class Wanted>
void merge_statistics(const Context<T>& context, const double* partial, Wanted&& wanted) {
  const Geometry& g = context.geometry;
  const int norms = context.norms();
  parallel_for_each(g.clients * norms, [&](int64_t i) {
    const int64_t client = i / norms;
    const int slot = static_cast<int>(i % norms);
    if (!wanted(slot)) return;
    if (context.args.training) {
      T* stats = context.stats(client, slot);
      merge_images(partial + (client * g.images * norms + slot) * 2 * g.channels,
                   context.args.count(client), int64_t{norms} * 2 * g.channels, g.out_pixels(),
                   g.channels, stats, stats + g.channels);
    }
    context.fill_norm(client, slot);
  });
}

template <class T>
void mixed_op_forward(const MixedOpForward<T>& args) {
  Context<T> context(args);
  const Geometry& g = context.geometry;
  const Plan& plan = context.plan;
  const int64_t partials =
      args.training ? g.clients * g.images * context.norms() * 2 * g.channels : 0;
  Arena& arena = call_arena();
  arena.reset(static_cast<size_t>(context.packed_size() + context.norm_vectors_size()) * sizeof(T) +
              static_cast<size_t>(partials) * sizeof(double) + 3 * 64);
  context.pack(arena.take<T>(context.packed_size()));
  context.place_norms(arena.take<T>(context.norm_vectors_size()));
  double* partial = arena.take<double>(partials);

  auto in_second_half = [&](int slot) {
    for (const Unit& unit : plan.units) {
      if (unit.norm == slot) return unit.source != kFromInput;
    }
    return false;
  };
  auto for_each_task = [&](auto&& stage) {
    parallel_for_each(context.tasks(), [&](int64_t i) { stage(context.task(i)); });
  };
  for_each_task([&](const Task& task) { stage_a(context, task, partial); });
  merge_statistics(context, partial, [&](int slot) { return !in_second_half(slot); });
  if (plan.first_half_units() < context.units()) {
    for_each_task([&](const Task& task) { stage_b(context, task, partial); });
    merge_statistics(context, partial, in_second_half);
  }
  for_each_task([&](const Task& task) { stage_c(context, task, args.out); });
}

}  // namespace metadnas::METADNAS_ISA
