// The forward pass: stages A, B, C with the statistics merged between them.
#pragma once

#include "mixed_op/cpu/stage_ab.h"
#include "mixed_op/cpu/stage_c.h"

namespace metadnas::METADNAS_ISA {

// Statistics of the norms `wanted` selects, from the images' own, and their vectors.
template <class T, class Wanted>
void merge_statistics(const Context<T>& context, const ImageStatistics<T>& statistics,
                      Wanted&& wanted) {
  const Geometry& g = context.geometry;
  const int norms = context.norms();
  parallel_for_each(g.clients * norms, [&](int64_t i) {
    const int64_t client = i / norms;
    const int norm = static_cast<int>(i % norms);
    if (!wanted(norm)) return;
    if (context.args.training) {
      T* stats = context.stats(client, norm);
      const EvenCut images{context.args.count(client) * g.out_pixels(), g.out_pixels()};
      merge_moments(images, statistics.at(client, 0, context.plan.norms[norm].partial),
                    ImageStatistics<T>::row(context), g.channels, stats, stats + g.channels);
    }
    context.fill_norm(client, norm);
  });
}

template <class T>
void mixed_op_forward(const MixedOpForward<T>& args) {
  Context<T> context(args);
  const Plan& plan = context.plan;
  const int64_t partials = args.training ? ImageStatistics<T>::size(context) : 0;
  Arena& arena = call_arena();
  arena.reset(static_cast<size_t>(context.packed_size() + context.norm_vectors_size() +
                                  context.transient_size()) *
                  sizeof(T) +
              static_cast<size_t>(partials) * sizeof(double) + 4 * 64);
  context.place_transient(arena.take<T>(context.transient_size()));
  context.pack(arena.take<T>(context.packed_size()));
  context.place_norms(arena.take<T>(context.norm_vectors_size()));
  const ImageStatistics<T> statistics{context, arena.take<double>(partials)};

  auto in_second_half = [&](int norm) {
    for (const Unit& unit : plan.units) {
      if (unit.norm == norm) return unit.source != kFromInput;
    }
    return false;
  };
  auto for_each_task = [&](auto&& stage) {
    parallel_for_each(context.tasks(), [&](int64_t i) { stage(context.task(i)); });
  };
  if (args.training || plan.first_half_units() > 0) {
    for_each_task([&](const Task& task) { stage_a(context, task, statistics); });
  }
  merge_statistics(context, statistics, [&](int norm) { return !in_second_half(norm); });
  if (plan.first_half_units() < context.units()) {
    for_each_task([&](const Task& task) { stage_b(context, task, statistics); });
    merge_statistics(context, statistics, in_second_half);
  }
  for_each_task([&](const Task& task) { stage_c(args, context, task); });
}

}  // namespace metadnas::METADNAS_ISA
