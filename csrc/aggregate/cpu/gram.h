// Gram matrix of the clients' rows about an origin, in double.
#pragma once

#include "aggregate/cpu/vectors.h"

namespace metadnas::METADNAS_ISA {

inline constexpr int64_t kGramRows = 256;     // clients of a block
inline constexpr int64_t kGramColumns = 256;  // columns of a packed block: 512 KiB with all rows
inline constexpr int kGramTileRows = 4;       // products of a register tile
inline constexpr int kGramTileColumns = kRegisters == 32 ? 4 : 2;

// Clients [first, first + count) as doubles about the origin: (rows, kGramColumns), zeros behind
// the last client and the last column.
struct GramBlock {
  double* values;
  int64_t first;
  int64_t count;

  static int64_t rows(int64_t count) {
    return (count + kGramTileRows - 1) / kGramTileRows * kGramTileRows;
  }
  const double* row(int64_t i) const { return values + i * kGramColumns; }
};

template <class T>
void pack_block(const GramArgs<T>& args, int64_t begin, int64_t width, const GramBlock& block) {
  const T* origin = args.origin + begin;
  const int64_t whole = width / kWide * kWide;
  for (int64_t i = 0; i < GramBlock::rows(block.count); ++i) {
    double* to = block.values + i * kGramColumns;
    int64_t c = 0;
    if (i < block.count) {
      const T* row = args.from.row(block.first + i) + begin;
      for (; c < whole; c += kWide) store(to + c, load_wide(row + c) - load_wide(origin + c));
      for (; c < width; ++c) to[c] = static_cast<double>(row[c]) - static_cast<double>(origin[c]);
    }
    for (; c < kGramColumns; ++c) to[c] = 0;
  }
}

// sums (kGramTileRows, kGramTileColumns): products of rows from a with rows from b.
METADNAS_INLINE inline void gram_tile(const double* a, const double* b, double* sums) {
  Vec<double> totals[kGramTileRows][kGramTileColumns] = {};
  for (int64_t c = 0; c < kGramColumns; c += kWide) {
    Vec<double> right[kGramTileColumns];
    unroll<kGramTileColumns>([&]<int J>() { right[J] = load(b + J * kGramColumns + c); });
    unroll<kGramTileRows>([&]<int I>() {
      const Vec<double> left = load(a + I * kGramColumns + c);
      unroll<kGramTileColumns>([&]<int J>() { totals[I][J] += left * right[J]; });
    });
  }
  unroll<kGramTileRows>([&]<int I>() {
    unroll<kGramTileColumns>([&]<int J>() {
      double sum = 0;
      for (int lane = 0; lane < kWide; ++lane) sum += totals[I][J][lane];
      sums[I * kGramTileColumns + J] = sum;
    });
  });
}

// Adds the products of two packed blocks to out (G, G); only j >= i where they are the same block.
inline void add_products(const GramBlock& a, const GramBlock& b, int64_t clients, double* out) {
  for (int64_t i = 0; i < a.count; i += kGramTileRows) {
    const int64_t start = a.first == b.first ? i / kGramTileColumns * kGramTileColumns : 0;
    for (int64_t j = start; j < b.count; j += kGramTileColumns) {
      double sums[kGramTileRows * kGramTileColumns];
      gram_tile(a.row(i), b.row(j), sums);
      for (int64_t r = 0; r < kGramTileRows && i + r < a.count; ++r) {
        double* to = out + (a.first + i + r) * clients + b.first + j;
        for (int64_t s = 0; s < kGramTileColumns && j + s < b.count; ++s) {
          to[s] += sums[r * kGramTileColumns + s];
        }
      }
    }
  }
}

// One pair of client blocks over columns [begin, end).
template <class T>
void gram_task(const GramArgs<T>& args, int64_t first, int64_t second, int64_t begin, int64_t end,
               double* out) {
  const int64_t clients = args.from.clients;
  const auto count = [&](int64_t i) { return clients - i < kGramRows ? clients - i : kGramRows; };
  const auto size = [&](int64_t i) { return GramBlock::rows(count(i)) * kGramColumns; };
  Arena& arena = worker_arena();
  arena.reset(static_cast<size_t>(size(first) + size(second)) * sizeof(double));
  const GramBlock a{arena.take<double>(size(first)), first, count(first)};
  const GramBlock b =
      first == second ? a : GramBlock{arena.take<double>(size(second)), second, count(second)};
  for (int64_t i = 0; i < a.count; ++i) {
    for (int64_t j = 0; j < b.count; ++j) out[(first + i) * clients + second + j] = 0;
  }
  for (int64_t c = begin; c < end; c += kGramColumns) {
    const int64_t width = end - c < kGramColumns ? end - c : kGramColumns;
    pack_block(args, c, width, a);
    if (first != second) pack_block(args, c, width, b);
    add_products(a, b, clients, out);
  }
}

// Pair `index` of the block pairs (first, second >= first), row by row.
inline std::pair<int64_t, int64_t> block_pair(int64_t index, int64_t blocks) {
  int64_t first = 0;
  for (; index >= blocks - first; ++first) index -= blocks - first;
  return {first, first + index};
}

template <class T>
void gram(const GramArgs<T>& args) {
  const int64_t clients = args.from.clients;
  const int64_t blocks = (clients + kGramRows - 1) / kGramRows;
  const int64_t pairs = blocks * (blocks + 1) / 2;
  const int64_t chunks = (args.from.columns + kGramColumns - 1) / kGramColumns;
  parallel_for_each(pairs * args.groups, [&](int64_t task) {
    const int64_t group = task / pairs;
    const auto [first, second] = block_pair(task % pairs, blocks);
    const int64_t begin = chunks * group / args.groups * kGramColumns;
    const int64_t end = chunks * (group + 1) / args.groups * kGramColumns;
    gram_task(args, first * kGramRows, second * kGramRows, begin,
              end < args.from.columns ? end : args.from.columns,
              args.out + group * clients * clients);
  });
  parallel_for_each(clients, [&](int64_t i) {
    for (int64_t group = 1; group < args.groups; ++group) {
      const double* from = args.out + (group * clients + i) * clients;
      for (int64_t j = i; j < clients; ++j) args.out[i * clients + j] += from[j];
    }
  });
  for (int64_t i = 0; i < clients; ++i) {
    for (int64_t j = 0; j < i; ++j) args.out[i * clients + j] = args.out[j * clients + i];
  }
}

}  // namespace metadnas::METADNAS_ISA
