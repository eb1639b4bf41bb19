// What the aggregation operators hand to a device, and the CPU's to the kernels of one instruction
// set: checked, contiguous. No torch headers.
#pragma once

#include <cstdint>

#include "common/host_device.h"

namespace metadnas {

// x: (G, P), one client a row.
template <class T>
struct Clients {
  const T* x;
  int64_t clients;
  int64_t columns;

  METADNAS_HOST_DEVICE const T* row(int64_t client) const { return x + client * columns; }
};

template <class T>
struct MeanInputs {
  Clients<T> from;
  const T* weights;  // (G), at least 0 with a positive sum
  T* out;            // (P)
};

template <class T>
struct MixturesInputs {
  Clients<T> from;
  const T* weights;  // (M, G), rows at least 0 with a positive sum
  int64_t mixtures;
  T* out;  // (M, P)
};

template <class T>
struct MeanArgs {
  const T* const* rows;  // (G) of (P): clients of a share above 0
  const double* share;   // (G), sums to 1
  int64_t clients;
  int64_t columns;
  T* out;  // (P)
};

template <class T>
struct MixturesArgs {
  Clients<T> from;
  const double* shares;  // (M, G), rows sum to 1
  int64_t mixtures;
  T* out;  // (M, P)
};

template <class T>
struct RankMeanArgs {
  Clients<T> from;
  int64_t begin;  // ranks [begin, end) of a column's values count, 0 <= begin < end <= G
  int64_t end;
  T* out;  // (P)
};

template <class T>
struct GramArgs {
  Clients<T> from;
  const T* origin;  // (P), subtracted from every client
  double* out;      // (groups, G, G); the result is the first
  int64_t groups;   // partial sums over columns
};

// The kernels of one instruction set.
template <class T>
struct AggregateKernels {
  void (*mean)(const MeanArgs<T>&);
  void (*mixtures)(const MixturesArgs<T>&);
  void (*rank_mean)(const RankMeanArgs<T>&);
  void (*gram)(const GramArgs<T>&);
};

}  // namespace metadnas
