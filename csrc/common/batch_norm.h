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
    sum += s[0] + s[1];
    squares += q[0] + q[1];
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

// partial: [chunk][mean, M2][channel] -> mean and biased variance, zeros where there is no pixel.
template <class T>
void merge_moments(const ChunkCut& cut, const double* partial, int channels, T* mean, T* variance) {
  const double n = static_cast<double>(cut.pixels);
  for (int c = 0; c < channels; ++c) {
    double total = 0, m2 = 0;
    for (int64_t i = 0; i < cut.chunks(); ++i) {
      total += static_cast<double>(cut.size(i)) * partial[2 * i * channels + c];
    }
    const double m = cut.pixels == 0 ? 0 : total / n;
    for (int64_t i = 0; i < cut.chunks(); ++i) {
      const double d = partial[2 * i * channels + c] - m;
      m2 += partial[(2 * i + 1) * channels + c] + static_cast<double>(cut.size(i)) * d * d;
    }
    mean[c] = static_cast<T>(m);
    variance[c] = cut.pixels == 0 ? T{0} : static_cast<T>(m2 / n);
  }
}

// Per channel: normal = (z - mean) * inverse, out = normal * gamma + beta. Arrays are zero behind
// the last channel, with room for a vector that starts at any channel.
template <class T>
struct NormCoefficients {
  T* mean;
  T* inverse;  // 1 / sqrt(variance + eps)
  T* gamma;
  T* beta;

  static int row(int channels) { return blocks_of<T>(channels) * kLanes<T> + kLanes<T>; }
  static int64_t size(int channels) { return int64_t{4} * row(channels); }
  NormCoefficients(int channels, T* memory)
      : mean(memory),
        inverse(mean + row(channels)),
        gamma(inverse + row(channels)),
        beta(gamma + row(channels)) {}

  // affine: gamma, then beta; null: not affine.
  void fill(int channels, const T* stats, const T* affine, double eps) const {
    for (int c = 0; c < row(channels); ++c) {
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

// grad_z = scale * grad + slope * normal + shift: batch norm's gradient, folded per channel.
template <class T>
struct NormGradientCoefficients {
  T* scale;
  T* slope;
  T* shift;

  static int64_t size(int channels) { return 3 * NormCoefficients<T>::row(channels); }
  NormGradientCoefficients(int channels, T* memory)
      : scale(memory),
        slope(scale + NormCoefficients<T>::row(channels)),
        shift(slope + NormCoefficients<T>::row(channels)) {}

  // sums: of grad, then of grad * normal, over `pixels` values; null: the statistics are constants
  // (eval mode).
  void fill(int channels, const NormCoefficients<T>& norm, const double* sums,
            int64_t pixels) const {
    for (int c = 0; c < NormCoefficients<T>::row(channels); ++c) {
      const double a = static_cast<double>(norm.gamma[c]) * static_cast<double>(norm.inverse[c]);
      const bool live = c < channels && sums != nullptr && pixels > 0;
      const double n = static_cast<double>(pixels);
      scale[c] = static_cast<T>(a);
      slope[c] = live ? static_cast<T>(-a * sums[channels + c] / n) : T{0};
      shift[c] = live ? static_cast<T>(-a * sums[c] / n) : T{0};
    }
  }
};

}  // namespace metadnas::METADNAS_ISA
