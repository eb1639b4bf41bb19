// The layers in plain loops, from the public DARTS definitions: one client, (N, H, W, C), S either
// double or a number that is differentiated. Independent of csrc.
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include "tape.h"

namespace testing {

template <class S>
struct Map {
  int n, h, w, c;
  std::vector<S> v;

  Map(int n, int h, int w, int c) : n(n), h(h), w(w), c(c), v(static_cast<size_t>(n) * h * w * c) {}
  S& at(int i, int y, int x, int k) {
    return v[((static_cast<size_t>(i) * h + y) * w + x) * c + k];
  }
  const S& at(int i, int y, int x, int k) const { return const_cast<Map*>(this)->at(i, y, x, k); }
  bool inside(int y, int x) const { return y >= 0 && y < h && x >= 0 && x < w; }
  int positions() const { return n * h * w; }
};

inline int halved(int size, int stride) { return (size + stride - 1) / stride; }

// The smallest |input| of a relu that is not exact: below rounding errors either side is right.
inline double closest_to_zero = 0;

template <class S>
Map<S> relu(Map<S> x) {
  for (S& v : x.v) {
    if (value(v) <= 0) v = S(0);
  }
  return x;
}

template <class S>
Map<S> depthwise(const Map<S>& x, const S* taps, int kernel, int dilation, int stride) {
  Map<S> out(x.n, halved(x.h, stride), halved(x.w, stride), x.c);
  const int reach = kernel / 2;
  for (int i = 0; i < out.n; ++i)
    for (int y = 0; y < out.h; ++y)
      for (int z = 0; z < out.w; ++z)
        for (int c = 0; c < x.c; ++c) {
          S total(0);
          for (int a = 0; a < kernel; ++a)
            for (int b = 0; b < kernel; ++b) {
              const int row = y * stride + (a - reach) * dilation;
              const int column = z * stride + (b - reach) * dilation;
              if (!x.inside(row, column)) continue;
              total += x.at(i, row, column, c) * taps[(c * kernel + a) * kernel + b];
            }
          out.at(i, y, z, c) = total;
        }
  return out;
}

// Outputs [first, first + count) of `out`: matrix (count, C) on the pixels (y * stride + shift,
// ...), zeros outside.
template <class S>
void pointwise(const Map<S>& x, const S* matrix, int stride, int shift, int first, int count,
               Map<S>& out) {
  for (int i = 0; i < out.n; ++i)
    for (int y = 0; y < out.h; ++y)
      for (int z = 0; z < out.w; ++z)
        for (int o = 0; o < count; ++o) {
          S total(0);
          const int row = y * stride + shift, column = z * stride + shift;
          for (int c = 0; c < x.c && x.inside(row, column); ++c) {
            total += x.at(i, row, column, c) * matrix[o * x.c + c];
          }
          out.at(i, y, z, first + o) = total;
        }
}

// A 1x1 convolution, or at stride 2 a factorized reduce: two grids, half of the outputs each.
template <class S>
Map<S> convolution(const Map<S>& x, const S* weights, int channels, int stride) {
  Map<S> out(x.n, halved(x.h, stride), halved(x.w, stride), channels);
  const int each = channels / stride;
  for (int grid = 0; grid < stride; ++grid) {
    pointwise(x, weights + grid * each * x.c, stride, grid, grid * each, each, out);
  }
  return out;
}

// affine: gamma, then beta, or null; running: mean, then variance, or null: of the batch. stats:
// the ones used.
template <class S>
Map<S> batch_norm(Map<S> x, const S* affine, double eps, const double* running, double* stats) {
  const double count = x.positions();
  for (int c = 0; c < x.c; ++c) {
    S mean(0), variance(0);
    if (running != nullptr) {
      mean = S(running[c]);
      variance = S(running[x.c + c]);
    } else {
      for (size_t i = static_cast<size_t>(c); i < x.v.size(); i += x.c) mean += x.v[i];
      mean = mean / S(count);
      for (size_t i = static_cast<size_t>(c); i < x.v.size(); i += x.c) {
        variance += (x.v[i] - mean) * (x.v[i] - mean);
      }
      variance = variance / S(count);
    }
    stats[c] = value(mean);
    stats[x.c + c] = value(variance);
    using std::sqrt;
    const S deviation = sqrt(variance + S(eps));
    for (size_t i = static_cast<size_t>(c); i < x.v.size(); i += x.c) {
      x.v[i] = (x.v[i] - mean) / deviation;
      if (affine != nullptr) x.v[i] = x.v[i] * affine[c] + affine[x.c + c];
    }
  }
  return x;
}

template <class S>
Map<S> pool(const Map<S>& x, int stride, bool largest) {
  Map<S> out(x.n, halved(x.h, stride), halved(x.w, stride), x.c);
  for (int i = 0; i < out.n; ++i)
    for (int y = 0; y < out.h; ++y)
      for (int z = 0; z < out.w; ++z)
        for (int c = 0; c < x.c; ++c) {
          S best(-std::numeric_limits<double>::infinity()), sum(0);
          bool first = true;
          int count = 0;
          for (int row = y * stride - 1; row <= y * stride + 1; ++row)
            for (int column = z * stride - 1; column <= z * stride + 1; ++column) {
              if (!x.inside(row, column)) continue;
              const S& v = x.at(i, row, column, c);
              if (first || value(v) > value(best) || std::isnan(value(v))) best = v;
              first = false;
              sum += v;
              ++count;
            }
          out.at(i, y, z, c) = largest ? best : sum / S(count);
        }
  return out;
}

// What a mixed operation takes from its rows, in order.
template <class S>
struct Cursor {
  const S* params;
  const double* running;  // null: training
  double* stats;
  bool affine;
  double eps;

  const S* take(int count) {
    params += count;
    return params - count;
  }
  Map<S> norm(const Map<S>& x) {
    const S* own = affine ? take(2 * x.c) : nullptr;
    Map<S> out = batch_norm(x, own, eps, running, stats);
    stats += 2 * x.c;
    if (running != nullptr) running += 2 * x.c;
    return out;
  }
  Map<S> half(const Map<S>& x, int kernel, int dilation, int stride) {
    const S* taps = take(x.c * kernel * kernel);
    const S* matrix = take(x.c * x.c);
    return norm(convolution(depthwise(relu(x), taps, kernel, dilation, stride), matrix, x.c, 1));
  }
};

// Indices as in metadnas_ext.space.PRIMITIVES; false: `none`, which adds nothing.
template <class S>
bool candidate(int64_t kind, const Map<S>& x, int stride, Cursor<S>& from, Map<S>& out) {
  switch (kind) {
    case 0:
      return false;
    case 1:
    case 2:
      out = from.norm(pool(x, stride, kind == 1));
      return true;
    case 3:
      out = stride == 1 ? x : from.norm(convolution(relu(x), from.take(x.c * x.c), x.c, 2));
      return true;
    case 4:
    case 5: {
      const int kernel = kind == 4 ? 3 : 5;
      const Map<S> middle = from.half(x, kernel, 1, stride);
      for (const S& v : middle.v) closest_to_zero = std::fmin(closest_to_zero, std::fabs(value(v)));
      out = from.half(middle, kernel, 1, 1);
      return true;
    }
    default:
      out = from.half(x, kind == 6 ? 3 : 5, 2, stride);
      return true;
  }
}

// Parameters and batch norms of a candidate.
inline int candidate_norms(int64_t kind, int stride) {
  return kind == 0 || (kind == 3 && stride == 1) ? 0 : kind == 4 || kind == 5 ? 2 : 1;
}
inline int candidate_params(int64_t kind, int channels, int stride, bool affine) {
  const int kernel = kind == 4 || kind == 6 ? 3 : 5;
  const int affine_size = affine ? candidate_norms(kind, stride) * 2 * channels : 0;
  if (kind < 3) return affine_size;
  if (kind == 3) return affine_size + (stride == 2 ? channels * channels : 0);
  return affine_size + (kind < 6 ? 2 : 1) * channels * (kernel * kernel + channels);
}

}  // namespace testing
