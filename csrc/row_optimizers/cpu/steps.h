// One pass over parameters, gradients and moments a step. Every element goes through the same
// vector instructions, those behind the last whole vector too: a row's result does not depend on
// where it lies, nor on its neighbours.
#pragma once

#include "common/parallel.h"
#include "common/simd.h"
#include "row_optimizers/args.h"

namespace metadnas::METADNAS_ISA::row_optimizers {

using metadnas::row_optimizers::AdamArgs;
using metadnas::row_optimizers::AdamRow;
using metadnas::row_optimizers::SgdArgs;
using metadnas::row_optimizers::SgdRow;

inline constexpr int64_t kColumns = 16384;  // of a task

// Calls body(row, first column, end) on pieces of at most kColumns columns.
template <class Body>
void for_each_piece(int64_t count, int64_t width, Body&& body) {
  const int64_t pieces = (width + kColumns - 1) / kColumns;
  parallel_for_each(count * pieces, [&](int64_t i) {
    const int64_t begin = i % pieces * kColumns;
    body(i / pieces, begin, width - begin < kColumns ? width : begin + kColumns);
  });
}

// Calls step(offset, live lanes) for every vector of [begin, end).
template <class T, class Step>
METADNAS_INLINE inline void for_each_vector(int64_t begin, int64_t end, Step&& step) {
  constexpr int L = kLanes<T>;
  int64_t i = begin;
  for (; i + L <= end; i += L) step(i, L);
  if (i < end) step(i, static_cast<int>(end - i));
}

template <class T>
void adam(const AdamArgs<T>& args) {
  const Vec<T> decay = splat(static_cast<T>(args.weight_decay));
  const Vec<T> keep = splat(static_cast<T>(args.beta2)), eps = splat(static_cast<T>(args.eps));
  const Vec<T> mean_step = splat(static_cast<T>(1 - args.beta1));
  const Vec<T> square_step = splat(static_cast<T>(1 - args.beta2));
  for_each_piece(args.count, args.width, [&](int64_t row, int64_t begin, int64_t end) {
    const AdamRow& own = args.rows[row];
    const Vec<T> scale = splat(static_cast<T>(own.grad_scale));
    const Vec<T> step = splat(static_cast<T>(own.step_size));
    const Vec<T> correction = splat(static_cast<T>(own.correction));
    const int64_t start = row * args.width;
    for_each_vector<T>(start + begin, start + end, [&](int64_t i, int live) METADNAS_INLINE {
      const Vec<T> w = load_first(args.parameters + i, live);
      const Vec<T> g = scale * load_first(args.grad + i, live) + decay * w;
      Vec<T> m = load_first(args.mean + i, live), v = load_first(args.square + i, live);
      m += mean_step * (g - m);
      v = keep * v + square_step * (g * g);
      store_first(args.mean + i, m, live);
      store_first(args.square + i, v, live);
      const Vec<T> size = square_root<T>(v) * correction + eps;
      store_first(args.parameters + i, w - step * (m / size), live);
    });
  });
}

template <class T>
void sgd(const SgdArgs<T>& args) {
  const Vec<T> decay = splat(static_cast<T>(args.weight_decay));
  const Vec<T> momentum = splat(static_cast<T>(args.momentum));
  for_each_piece(args.count, args.width, [&](int64_t row, int64_t begin, int64_t end) {
    const SgdRow& own = args.rows[row];
    const Vec<T> scale = splat(static_cast<T>(own.grad_scale));
    const Vec<T> rate = splat(static_cast<T>(own.rate));
    const int64_t start = row * args.width;
    for_each_vector<T>(start + begin, start + end, [&](int64_t i, int live) METADNAS_INLINE {
      const Vec<T> w = load_first(args.parameters + i, live);
      const Vec<T> g = scale * load_first(args.grad + i, live) + decay * w;
      const Vec<T> v = momentum * load_first(args.velocity + i, live) + g;
      store_first(args.velocity + i, v, live);
      store_first(args.parameters + i, w - rate * v, live);
    });
  });
}

// The first `live` values as doubles, zeros behind them.
template <class T>
METADNAS_INLINE inline Vec<double> widened(const T* p, int live) {
  constexpr int L = kLanes<double>;
  typedef T Narrow __attribute__((vector_size(L * sizeof(T))));
  Narrow v = {};
  if (live == L) {
    __builtin_memcpy(&v, p, sizeof(v));
  } else {
    for (int i = 0; i < live; ++i) v[i] = p[i];
  }
  return __builtin_convertvector(v, Vec<double>);
}

// In double precision, pieces in their order.
template <class T>
void square_sums(const T* rows, int64_t count, int64_t width, double* sums) {
  const int64_t pieces = (width + kColumns - 1) / kColumns;
  Arena& arena = call_arena();
  arena.reset(static_cast<size_t>(count * pieces) * sizeof(double));
  double* partial = arena.take<double>(count * pieces);
  for_each_piece(count, width, [&](int64_t row, int64_t begin, int64_t end) {
    constexpr int kChains = 4;  // an addition's latency is that of several vectors
    Vec<double> total[kChains] = {};
    int chain = 0;
    for_each_vector<double>(begin, end, [&](int64_t i, int live) METADNAS_INLINE {
      const Vec<double> v = widened(rows + row * width + i, live);
      total[chain++ % kChains] += v * v;
    });
    const Vec<double> all = (total[0] + total[1]) + (total[2] + total[3]);
    double sum = 0;
    for (int i = 0; i < kLanes<double>; ++i) sum += all[i];
    partial[row * pieces + begin / kColumns] = sum;
  });
  for (int64_t row = 0; row < count; ++row) {
    sums[row] = 0;
    for (int64_t i = 0; i < pieces; ++i) sums[row] += partial[row * pieces + i];
  }
}

}  // namespace metadnas::METADNAS_ISA::row_optimizers
