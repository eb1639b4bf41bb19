// Vectors of the instruction set a translation unit is compiled for.
//
// The same kernel source is compiled once per instruction set. The including file sets the compiler
// target, then defines METADNAS_ISA (a namespace, so that the copies never clash at link time) and
// METADNAS_VECTOR_BYTES. Standard headers must be included before the target is changed: an inline
// function of theirs compiled for AVX-512 could otherwise be the copy the linker keeps for
// everyone.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstddef>
#include <cstdint>
#include <utility>

#define METADNAS_INLINE __attribute__((always_inline))

namespace metadnas::METADNAS_ISA {

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(METADNAS_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
inline constexpr int kLanes = METADNAS_VECTOR_BYTES / static_cast<int>(sizeof(T));

// Vectors that `channels` channels take.
template <class T>
constexpr int blocks_of(int channels) {
  return (channels + kLanes<T> - 1) / kLanes<T>;
}

// Architectural vector registers: the kernels size their register tiles by it.
inline constexpr int kRegisters = METADNAS_VECTOR_BYTES == 64 ? 32 : 16;

template <int... I, class F>
METADNAS_INLINE inline void unroll_impl(std::integer_sequence<int, I...>, F&& body) {
  (body.template operator()<I>(), ...);
}

// Calls body.operator()<0>(), ..., body.operator()<N - 1>(): a loop whose index is a constant.
template <int N, class F>
METADNAS_INLINE inline void unroll(F&& body) {
  unroll_impl(std::make_integer_sequence<int, N>{}, body);
}

template <class T>
METADNAS_INLINE inline Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
METADNAS_INLINE inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <class T>
METADNAS_INLINE inline Vec<T> splat(T value) {
  return Vec<T>{} + value;
}

// The first `n` lanes from memory, zeros behind them: the last channels of a pixel.
template <class T>
METADNAS_INLINE inline Vec<T> load_first(const T* p, int n) {
  if (n == kLanes<T>) return load(p);
#if METADNAS_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
  } else {
    return (Vec<T>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
  }
#else
  T lanes[kLanes<T>] = {};
  for (int i = 0; i < n; ++i) lanes[i] = p[i];
  return load(lanes);
#endif
}

template <class T>
METADNAS_INLINE inline void store_first(T* p, Vec<T> v, int n) {
  if (n == kLanes<T>) return store(p, v);
#if METADNAS_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
  } else {
    _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
  }
#else
  T lanes[kLanes<T>];
  store(lanes, v);
  for (int i = 0; i < n; ++i) p[i] = lanes[i];
#endif
}

template <class T>
METADNAS_INLINE inline Vec<T> square_root(Vec<T> v) {
  constexpr bool kSingle = sizeof(T) == 4;
#if METADNAS_VECTOR_BYTES == 64
  // The masked forms: GCC 12 takes the others for reading an uninitialised register.
  if constexpr (kSingle) return (Vec<T>)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);
  if constexpr (!kSingle) return (Vec<T>)_mm512_maskz_sqrt_pd(0xff, (__m512d)v);
#elif METADNAS_VECTOR_BYTES == 32
  if constexpr (kSingle) return (Vec<T>)_mm256_sqrt_ps((__m256)v);
  if constexpr (!kSingle) return (Vec<T>)_mm256_sqrt_pd((__m256d)v);
#elif defined(__x86_64__)
  if constexpr (kSingle) return (Vec<T>)_mm_sqrt_ps((__m128)v);
  if constexpr (!kSingle) return (Vec<T>)_mm_sqrt_pd((__m128d)v);
#else
  for (int i = 0; i < kLanes<T>; ++i) v[i] = kSingle ? __builtin_sqrtf(v[i]) : __builtin_sqrt(v[i]);
  return v;
#endif
}

// Stores a whole vector past the caches: for results that are read again much later. `p` must be
// aligned to the vector.
template <class T>
METADNAS_INLINE inline void store_streaming(T* p, Vec<T> v) {
#if METADNAS_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    _mm512_stream_ps(p, (__m512)v);
  } else {
    _mm512_stream_pd(p, (__m512d)v);
  }
#elif defined(__AVX__)
  if constexpr (sizeof(T) == 4) {
    _mm256_stream_ps(p, (__m256)v);
  } else {
    _mm256_stream_pd(p, (__m256d)v);
  }
#else
  store(p, v);
#endif
}

// Makes streaming stores visible to other threads.
METADNAS_INLINE inline void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// Asks for `count` elements from `p` on to be brought close, ahead of their use. Any address will
// do.
template <class T>
METADNAS_INLINE inline void prefetch(const T* p, ptrdiff_t count) {
  constexpr ptrdiff_t kLine = 64 / sizeof(T);
  for (ptrdiff_t i = 0; i < count; i += kLine) __builtin_prefetch(p + i, 0, 2);
}

// The larger of two values, of equal ones b; b if either is NaN: one instruction.
template <class T>
METADNAS_INLINE inline Vec<T> larger(Vec<T> a, Vec<T> b) {
#if METADNAS_VECTOR_BYTES == 64
  // The masked forms, as gcc 12 warns of its own definition of the others.
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm512_mask_max_ps((__m512)a, 0xffff, (__m512)a, (__m512)b);
  } else {
    return (Vec<T>)_mm512_mask_max_pd((__m512d)a, 0xff, (__m512d)a, (__m512d)b);
  }
#elif defined(__AVX__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm256_max_ps((__m256)a, (__m256)b);
  } else {
    return (Vec<T>)_mm256_max_pd((__m256d)a, (__m256d)b);
  }
#else
  return a > b ? a : b;
#endif
}

// Whether any lane is NaN.
template <class V>
METADNAS_INLINE inline bool any_nan(V v) {
  bool found = false;
  for (size_t i = 0; i < sizeof(V) / sizeof(v[0]); ++i) found |= v[i] != v[i];
  return found;
}

// max(a, b) that keeps a NaN from either side, as PyTorch's pooling does.
template <class V>
METADNAS_INLINE inline V max_nan(V a, V b) {
  V larger = a > b ? a : b;
  return a != a ? a : larger;
}

// relu that lets NaN through, as PyTorch's does.
template <class V>
METADNAS_INLINE inline V relu(V v) {
  return v <= V{} ? V{} : v;
}

// Gradient of relu at input (or output) r: 0 where r <= 0.
template <class V>
METADNAS_INLINE inline V relu_grad(V r, V g) {
  return r <= V{} ? V{} : g;
}

}  // namespace metadnas::METADNAS_ISA
