// Mixtures of clients: several weighted means of the same data, added up in client order.
#pragma once

#include "aggregate/cpu/vectors.h"

namespace metadnas::METADNAS_ISA {

inline constexpr int kMixRows = 4;                            // mixtures of a register tile
inline constexpr int kMixVectors = kRegisters == 32 ? 4 : 2;  // its columns, in vectors
inline constexpr int64_t kMixTile = int64_t{kMixVectors} * kWide;
inline constexpr int64_t kMixBytes = 256 * 1024;  // a strip in the second-level cache

// A strip of all clients as doubles, (G, width) with width a multiple of kMixTile.
struct Strip {
  double* values;
  bool* finite;  // (G): whether all of a client's values are
  int64_t width;
};

template <class T>
void load_strip(const Clients<T>& from, int64_t begin, const Strip& strip) {
  const int64_t live = from.columns - begin < strip.width ? from.columns - begin : strip.width;
  for (int64_t g = 0; g < from.clients; ++g) {
    const T* row = from.row(g) + begin;
    double* to = strip.values + g * strip.width;
    Mask<double> bad{};
    int64_t c = 0;
    for (; c + kWide <= live; c += kWide) {
      const Vec<double> v = load_wide(row + c);
      bad |= v - v != Vec<double>{};  // infinity and NaN give NaN
      store(to + c, v);
    }
    bool finite = !any<double>(bad);
    for (; c < live; ++c) {
      to[c] = static_cast<double>(row[c]);
      finite = finite && to[c] - to[c] == 0;
    }
    for (; c < strip.width; ++c) to[c] = 0;
    strip.finite[g] = finite;
  }
}

// `Rows` mixtures of kMixTile columns.
template <int Rows>
METADNAS_INLINE inline void mix_tile(const Strip& strip, int64_t column, const double* shares,
                                     int64_t clients, double* out) {
  Vec<double> sums[Rows][kMixVectors] = {};
  for (int64_t g = 0; g < clients; ++g) {
    Vec<double> x[kMixVectors];
    const double* from = strip.values + g * strip.width + column;
    unroll<kMixVectors>([&]<int V>() { x[V] = load(from + V * kWide); });
    // 0 * NaN is NaN: a client of weight 0 must not reach the result.
    const bool all = strip.finite[g];
    unroll<Rows>([&]<int R>() {
      const double share = shares[R * clients + g];
      if (all || share != 0) {
        unroll<kMixVectors>([&]<int V>() { sums[R][V] += share * x[V]; });
      }
    });
  }
  unroll<Rows>([&]<int R>() {
    unroll<kMixVectors>([&]<int V>() { store(out + R * kMixTile + V * kWide, sums[R][V]); });
  });
}

template <class T>
void mix_strip(const MixturesArgs<T>& args, const Strip& strip, int64_t begin) {
  const Clients<T>& from = args.from;
  load_strip(from, begin, strip);
  for (int64_t m = 0; m < args.mixtures; m += kMixRows) {
    const int64_t rows = args.mixtures - m < kMixRows ? args.mixtures - m : kMixRows;
    for (int64_t c = 0; c < strip.width && begin + c < from.columns; c += kMixTile) {
      alignas(64) double tile[kMixRows * kMixTile];
      const double* shares = args.shares + m * from.clients;
      if (rows == kMixRows) {
        mix_tile<kMixRows>(strip, c, shares, from.clients, tile);
      } else {
        for (int64_t r = 0; r < rows; ++r) {
          mix_tile<1>(strip, c, shares + r * from.clients, from.clients, tile + r * kMixTile);
        }
      }
      const int64_t left = from.columns - begin - c;
      const int64_t live = left < kMixTile ? left : kMixTile;
      for (int64_t r = 0; r < rows; ++r) {
        T* to = args.out + (m + r) * from.columns + begin + c;
        for (int64_t i = 0; i < live; ++i) to[i] = static_cast<T>(tile[r * kMixTile + i]);
      }
    }
  }
}

template <class T>
void mixtures(const MixturesArgs<T>& args) {
  const int64_t clients = args.from.clients;
  const int64_t fitting = kMixBytes / static_cast<int64_t>(sizeof(double)) / clients / kMixTile;
  const int64_t width = (fitting < 1 ? 1 : fitting < 8 ? fitting : 8) * kMixTile;
  parallel_for_each((args.from.columns + width - 1) / width, [&](int64_t i) {
    Arena& arena = worker_arena();
    const size_t values = static_cast<size_t>(clients * width) * sizeof(double);
    arena.reset(Arena::rounded(values) + Arena::rounded(static_cast<size_t>(clients)));
    const Strip strip{arena.take<double>(clients * width), arena.take<bool>(clients), width};
    mix_strip(args, strip, i * width);
  });
}

}  // namespace metadnas::METADNAS_ISA
