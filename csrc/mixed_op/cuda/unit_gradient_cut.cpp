#include <utility>

#include "mixed_op/cuda/cut.h"
#include "mixed_op/cuda/unit_gradient.h"

namespace metadnas::mixed_op {
namespace {

// A cut with blocks of `range` channels, and the bytes it takes; 0: it cannot be.
std::pair<GradientCut, size_t> measure(GradientCut cut, int channels, int range, int vector,
                                       size_t element) {
  cut.range = std::min(channels, range);
  cut.ranges = ceil_div(channels, cut.range);
  cut.vectors = make_divisor(channels / vector);
  cut.range_vectors = make_divisor(ceil_div(cut.range, vector));
  cut.columns = product_columns(cut.tiles.pixels(), cut.range, vector);
  if (cut.columns == 0) return {cut, 0};
  cut.groups = make_divisor(ceil_div(cut.range, cut.columns));
  cut.outer_step = make_divisor(ceil_div(cut.range, kOuter));
  const int step = cut.outer_step, padded = cut.groups * cut.columns + kQuad;
  cut.staged_rows = staged_rows(channels, padded, element, 9 * 1024);
  SharedLayout layout;
  layout.take(cut.chunk * cut.window.plane);
  cut.shared.taps = layout.take(kMostTaps * kMostTaps * cut.chunk);
  cut.shared.matrix = layout.take(cut.staged_rows * padded);
  cut.shared.dz = layout.take(channels * cut.pitch());
  cut.shared.grad_d = layout.take(cut.range * cut.pitch());
  cut.shared.values = layout.take(cut.range * cut.pitch());
  // The sums of the matrix' gradient are added up where the others have been.
  layout.extend_to(kThreads / (step * step) * cut.range * cut.range);
  cut.shared.tap_sums = layout.take(ceil_div(cut.range, cut.chunk) * kTapThreads * kMostTaps);
  cut.shared.total = layout.total();
  return {cut, cut.shared.total * element};
}

}  // namespace

GradientCut cut_gradient(const Geometry& geometry, int stride, int reach, int vector,
                         size_t element) {
  const int channels = geometry.channels;
  // Large blocks of channels before large tiles: each block makes dz anew.
  int range = GradientCut::kMostRange;
  const auto make = [&](int pixels, int chunk) {
    GradientCut cut{};
    cut.tiles = make_tiles(geometry.out_height, geometry.out_width, pixels);
    cut.window = make_window(cut.tiles, stride, reach, chunk);
    cut.chunk = make_divisor(chunk);
    return measure(cut, channels, range, vector, element);
  };
  std::optional<GradientCut> found;
  for (; !found && range > 8; range /= 2) found = find_cut(channels, 32, kSharedBudget, make);
  GradientCut cut = found ? *found : fitting_cut(channels, 32, make);
  // As many tiles as make the sums, of channels^2, small beside what they are summed from.
  cut.span = std::max(4, ceil_div(4 * channels, cut.tiles.pixels()));
  cut.spans = ceil_div(geometry.images * cut.tiles.count(), cut.span);
  return cut;
}

}  // namespace metadnas::mixed_op
