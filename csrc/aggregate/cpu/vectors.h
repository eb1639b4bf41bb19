// What aggregation needs beside common/simd.h: widening loads and per-lane counting.
#pragma once

#include <type_traits>

#include "common/simd.h"

namespace metadnas::METADNAS_ISA {

inline constexpr int kWide = kLanes<double>;

// As many T as a vector has doubles.
template <class T>
struct NarrowOf {
  typedef T type __attribute__((vector_size(kWide * sizeof(T))));
};
template <class T>
using Narrow = typename NarrowOf<T>::type;

// kWide elements as doubles.
template <class T>
METADNAS_INLINE inline Vec<double> load_wide(const T* p) {
#if METADNAS_VECTOR_BYTES == 64
  // GCC would convert the halves and join them.
  if constexpr (sizeof(T) == 4) return (Vec<double>)_mm512_maskz_cvtps_pd(0xff, _mm256_loadu_ps(p));
#endif
  Narrow<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return __builtin_convertvector(v, Vec<double>);
}

// What a comparison of two Vec<T> gives: a signed integer of T's size a lane, all ones for true.
template <class T>
using Mask = decltype(Vec<T>{} < Vec<T>{});
template <class T>
using MaskLane = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

template <class T>
METADNAS_INLINE inline bool any(Mask<T> mask) {
#if METADNAS_VECTOR_BYTES == 64
  return _mm512_test_epi64_mask((__m512i)mask, (__m512i)mask) != 0;
#else
  const Mask<double> words = (Mask<double>)mask;
  int64_t all = 0;
  for (int i = 0; i < kWide; ++i) all |= words[i];
  return all != 0;
#endif
}

// counts + 1 in the lanes where a < b.
template <class T>
METADNAS_INLINE inline Mask<T> count_less(Mask<T> counts, Vec<T> a, Vec<T> b) {
#if METADNAS_VECTOR_BYTES == 64
  // GCC would turn the comparison's mask register into a vector first.
  if constexpr (sizeof(T) == 4) {
    const __mmask16 less = _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_LT_OQ);
    return (Mask<T>)_mm512_mask_add_epi32((__m512i)counts, less, (__m512i)counts,
                                          _mm512_set1_epi32(1));
  } else {
    const __mmask8 less = _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_LT_OQ);
    return (Mask<T>)_mm512_mask_add_epi64((__m512i)counts, less, (__m512i)counts,
                                          _mm512_set1_epi64(1));
  }
#else
  return counts - (a < b);
#endif
}

}  // namespace metadnas::METADNAS_ISA
