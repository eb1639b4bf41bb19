// Batch norm over pixels that are cut into chunks: statistics and gradient sums of a chunk, merged
// in double precision and in chunk order.
#pragma once

#include <cmath>

#include "common/simd.h"

namespace metadnas::METADNAS_ISA {

// Chunks of `grain` pixels each; the last one may be smaller.
struct ChunkCut {
  int64_t pixels;
  int64_t grain;

  int64_t chunks() const { return (pixels + grain - 1) / grain; }
  int64_t size(int64_t chunk) const {
    const int64_t rest = pixels - chunk * grain;
    return rest < grain ? rest : grain;
  }
  // What a chunk's mean counts for, and all of them together.
  int64_t weight(int64_t chunk) const { return size(chunk); }
  int64_t weights() const { return pixels; }
};

// All chunks are whole: their means count the same.
struct EvenCut : ChunkCut {
  int64_t weight(int64_t) const { return 1; }
  int64_t weights() const { return chunks(); }
};

// Sums of a chunk around one of its own values: a plain sum of squares loses all digits when the
// mean is large.
template <class T>
struct ChunkMoments {
  Vec<T> shift{};
  Vec<T> sum{};
  Vec<T> squares{};

  // The first `valid` of MP values; kAll: all of them, without looking.
  template <bool kAll, int MP>
  METADNAS_INLINE void add(const Vec<T> (&values)[MP], int valid) {
    Vec<T> s[2] = {}, q[2] = {};
    unroll<MP>([&]<int p>() METADNAS_INLINE {
      if (kAll || p < valid) {
        const Vec<T> d = values[p] - shift;
        s[p % 2] += d;
        q[p % 2] += d * d;
      }
    });
    add(s[0] + s[1], q[0] + q[1]);
  }

  // Values' deviations from `shift`, added up, and their squares.
  METADNAS_INLINE void add(Vec<T> s, Vec<T> q) {
    sum += s;
    squares += q;
  }

  // mean and M2 (sum of squared deviations) over `pixels` values, for `live` lanes.
  void finish(int64_t pixels, int live, double* mean, double* m2) const {
    const double n = static_cast<double>(pixels);
    for (int i = 0; i < live; ++i) {
      const double s = static_cast<double>(sum[i]);
      mean[i] = static_cast<double>(shift[i]) + s / n;
      const double deviation = static_cast<double>(squares[i]) - s * s / n;
      m2[i] = deviation < 0 ? 0 : deviation;  // NaN stays NaN
    }
  }
};

// partial: [mean, M2][channel] of each chunk, `stride` apart -> mean and biased variance, zeros
// where there is no pixel.
template <class Cut, class T>
void merge_moments(const Cut& cut, const double* partial, int64_t stride, int channels, T* mean,
                   T* variance) {
  const int64_t chunks = cut.chunks();
  for (int c = 0; c < channels; ++c) {
    if (chunks == 0) {
      mean[c] = variance[c] = T{0};
      continue;
    }
    double total = 0, m2 = 0;
    for (int64_t i = 0; i < chunks; ++i) {
      total += static_cast<double>(cut.weight(i)) * partial[i * stride + c];
    }
    const double m = total / static_cast<double>(cut.weights());
    for (int64_t i = 0; i < chunks; ++i) {
      const double d = partial[i * stride + c] - m;
      m2 += partial[i * stride + channels + c] + static_cast<double>(cut.size(i)) * d * d;
    }
    mean[c] = static_cast<T>(m);
    variance[c] = static_cast<T>(m2 / static_cast<double>(cut.pixels));
  }
}

// Per channel, with zeros behind the last one up to a whole row: normal = (z - mean) * inverse, out
// = normal * gamma + beta.
template <class T>
struct NormVectors {
  int row;
  T* mean;
  T* inverse;  // 1 / sqrt(variance + eps)
  T* gamma;
  T* beta;

  static int64_t size(int row) { return int64_t{4} * row; }
  NormVectors(int row, T* memory)
      : row(row), mean(memory), inverse(mean + row), gamma(inverse + row), beta(gamma + row) {}

  // gamma * inverse
  METADNAS_INLINE Vec<T> scale(int channel) const {
    return load(gamma + channel) * load(inverse + channel);
  }

  // stats: mean, then variance. affine: gamma, then beta; null: not affine.
  void fill(int channels, const T* stats, const T* affine, double eps) const {
    for (int c = 0; c < row; ++c) {
      const bool live = c < channels;
      mean[c] = live ? stats[c] : T{0};
      inverse[c] =
          live ? static_cast<T>(1 / std::sqrt(static_cast<double>(stats[channels + c]) + eps))
               : T{0};
      gamma[c] = !live ? T{0} : affine == nullptr ? T{1} : affine[c];
      beta[c] = !live || affine == nullptr ? T{0} : affine[channels + c];
    }
  }
};

// What a backward pass has of batch norm's values: `normal`, or z - mean.
enum class NormValues { kNormal, kCentred };

// Sums over each channel, of the gradient of batch norm's result and of gradient * value. `weight`
// is a factor that the gradient has yet to get.
struct NormGradientSums {
  NormValues values;
  double weight;
  const double* grad;
  const double* product;

  // value * unit = normal
  template <class T>
  double unit(const NormVectors<T>& norm, int c) const {
    return values == NormValues::kNormal ? 1 : static_cast<double>(norm.inverse[c]);
  }
  // Gradients of gamma, then of beta.
  template <class T>
  void write_affine(const NormVectors<T>& norm, int channels, T* to) const {
    for (int c = 0; c < channels; ++c) {
      to[c] = static_cast<T>(weight * unit(norm, c) * product[c]);
      to[channels + c] = static_cast<T>(weight * grad[c]);
    }
  }
};

// grad_z = scale * grad + slope * value + shift: batch norm's gradient, folded per channel.
template <class T>
struct NormGradient {
  T* scale;
  T* slope;
  T* shift;

  static int64_t size(int row) { return int64_t{3} * row; }
  NormGradient(int row, T* memory) : scale(memory), slope(scale + row), shift(slope + row) {}

  // pixels: values of a channel; 0: the statistics are constants (eval mode), or there is nothing.
  void fill(const NormVectors<T>& norm, const NormGradientSums& sums, int channels,
            int64_t pixels) const {
    const double n = static_cast<double>(pixels);
    for (int c = 0; c < norm.row; ++c) {
      const bool live = c < channels;
      const double a = live ? sums.weight * static_cast<double>(norm.gamma[c]) *
                                  static_cast<double>(norm.inverse[c])
                            : 0;
      const double unit = sums.unit(norm, c);
      const bool batch = live && pixels > 0;
      scale[c] = static_cast<T>(a);
      slope[c] = batch ? static_cast<T>(-a * unit * unit * sums.product[c] / n) : T{0};
      shift[c] = batch ? static_cast<T>(-a * sums.grad[c] / n) : T{0};
    }
  }
};

}  // namespace metadnas::METADNAS_ISA
