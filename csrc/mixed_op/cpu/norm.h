// Batch-norm statistics and coefficients.
#pragma once

#include <cmath>

#include "mixed_op/cpu/scratch.h"

namespace metadnas::METADNAS_ISA {

// Sums of one image around a shift taken from the image itself: a plain sum of squares loses all
// digits when the mean is large.
template <class T>
struct ShiftedSums {
  Vec<T> shift{};
  Vec<T> sum{};
  Vec<T> squares{};

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

// Merges the (mean, M2) of `images` images of equal size, `stride` doubles apart, in image order;
// writes mean and biased variance (zeros for a client without images).
template <class T>
void merge_images(const double* partial, int64_t images, int64_t stride, int64_t pixels,
                  int channels, T* mean, T* variance) {
  for (int c = 0; c < channels; ++c) {
    if (images == 0) {
      mean[c] = variance[c] = T{0};
      continue;
    }
    double total = 0;
    for (int64_t i = 0; i < images; ++i) total += partial[i * stride + c];
    const double m = total / static_cast<double>(images);
    double m2 = 0;
    for (int64_t i = 0; i < images; ++i) {
      const double d = partial[i * stride + c] - m;
      m2 += partial[i * stride + channels + c] + static_cast<double>(pixels) * d * d;
    }
    mean[c] = static_cast<T>(m);
    variance[c] = static_cast<T>(m2 / static_cast<double>(images * pixels));
  }
}

// Per channel, padded to whole vectors with zeros.
template <class T>
struct NormVectors {
  T* mean;
  T* inverse;  // 1 / sqrt(variance + eps)
  T* gamma;
  T* beta;
  T* scale;  // gamma * inverse

  static int64_t size(int padded) { return int64_t{5} * padded; }
  NormVectors(int padded, T* memory)
      : mean(memory),
        inverse(mean + padded),
        gamma(inverse + padded),
        beta(gamma + padded),
        scale(beta + padded) {}

  void fill(const Norm& norm, const T* params, const T* stats, int channels, int padded,
            double eps) const {
    for (int c = 0; c < padded; ++c) {
      const bool live = c < channels;
      mean[c] = live ? stats[c] : T{0};
      inverse[c] =
          live ? static_cast<T>(1 / std::sqrt(static_cast<double>(stats[channels + c]) + eps))
               : T{0};
      gamma[c] = !live ? T{0} : norm.gamma == kAbsent ? T{1} : params[norm.gamma + c];
      beta[c] = !live || norm.beta == kAbsent ? T{0} : params[norm.beta + c];
      scale[c] = gamma[c] * inverse[c];
    }
  }
};

// dz = scale * grad + slope * (z - mean) + shift: batch norm's gradient, folded per channel.
template <class T>
struct NormGradient {
  T* scale;
  T* slope;
  T* shift;

  static int64_t size(int padded) { return int64_t{3} * padded; }
  NormGradient(int padded, T* memory)
      : scale(memory), slope(scale + padded), shift(slope + padded) {}

  // weight: the mixing weight in front; sum_grad, sum_product: sums of grad and of grad * (z -
  // mean) over `count` values; frozen: statistics are constants (eval mode).
  void fill(const NormVectors<T>& norm, double weight, const double* sum_grad,
            const double* sum_product, double count, bool frozen, int channels, int padded) const {
    for (int c = 0; c < padded; ++c) {
      const bool live = c < channels;
      const double inverse = live ? static_cast<double>(norm.inverse[c]) : 0;
      const double a = live ? weight * static_cast<double>(norm.gamma[c]) * inverse : 0;
      scale[c] = static_cast<T>(a);
      slope[c] =
          frozen || !live ? T{0} : static_cast<T>(-a * inverse * inverse * sum_product[c] / count);
      shift[c] = frozen || !live ? T{0} : static_cast<T>(-a * sum_grad[c] / count);
    }
  }
};

}  // namespace metadnas::METADNAS_ISA
