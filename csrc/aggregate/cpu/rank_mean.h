// Mean of each column's values between two ranks: the median and the trimmed mean over clients.
#pragma once

#include "aggregate/cpu/select.h"
#include "aggregate/cpu/sort.h"

namespace metadnas::METADNAS_ISA {

inline constexpr int64_t kRankBytes = 256 * 1024;  // a strip that stays in the second-level cache
inline constexpr int64_t kRankColumns = 1024;
inline constexpr int64_t kSortedClients = 64;  // up to here sorting beats selection
inline constexpr int64_t kRowsAhead = 8;       // fetched before they are read
template <class T>
inline constexpr int64_t kLineValues = 64 / sizeof(T);  // of a cache line

// Ranks [begin, end), from 0.
struct Ranks {
  int64_t begin;
  int64_t end;

  int64_t count() const { return end - begin; }
};

// kLanes columns of all clients, NaN replaced by +inf (both come last).
template <class T>
struct Columns {
  Tile<T> tile;
  Vec<T> least;
  Vec<T> most;
  Mask<T> numbers;  // values that were not NaN
};

template <class T>
METADNAS_INLINE inline Columns<T> without_nan(T* rows, int64_t clients) {
  const Vec<T> infinity = splat(std::numeric_limits<T>::infinity());
  Columns<T> columns{{rows, clients}, infinity, -infinity, {}};
  for (int64_t g = 0; g < clients; ++g) {
    const Vec<T> v = load(rows + g * kLanes<T>);
    const Mask<T> number = v == v;
    const Vec<T> clean = number ? v : infinity;
    store(rows + g * kLanes<T>, clean);
    columns.numbers -= number;
    columns.least = clean < columns.least ? clean : columns.least;
    columns.most = clean > columns.most ? clean : columns.most;
  }
  return columns;
}

// Sum of the values strictly between `low` and `high`, in client order.
template <class T>
METADNAS_INLINE inline void sum_between(const Tile<T>& tile, const T* low, const T* high,
                                        double* sum) {
  for (int part = 0; part < kLanes<T>; part += kWide) {
    const Vec<double> a = load_wide(low + part);
    const Vec<double> b = load_wide(high + part);
    Vec<double> total{};
    for (int64_t g = 0; g < tile.clients; ++g) {
      const Vec<double> v = load_wide(tile.rows + g * kLanes<T> + part);
      total += (v > a) & (v < b) ? v : Vec<double>{};
    }
    store(sum + part, total);
  }
}

// The mean of more than two ranks: everything strictly between the two end values counts once.
template <class T>
void mean_between(const Tile<T>& tile, Ranks ranks, Vec<T> a, Vec<T> b, double* out) {
  alignas(64) T low[kLanes<T>], high[kLanes<T>];
  store(low, a);
  store(high, b);
  const Mask<T> above_a = tile.above(a).first;
  const Mask<T> below_b = tile.count_below(b);
  sum_between(tile, low, high, out);
  for (int i = 0; i < kLanes<T>; ++i) {
    const double first = static_cast<double>(low[i]);
    const double last = static_cast<double>(high[i]);
    // Copies of the end values that are within the ranks: at least one each.
    const double firsts = static_cast<double>(tile.clients - above_a[i] - ranks.begin);
    const double lasts = static_cast<double>(ranks.end - below_b[i]);
    const double total = out[i] + first * firsts + last * lasts;
    out[i] = first == last ? first : total / static_cast<double>(ranks.count());
  }
}

template <class T>
void selected_mean(const Columns<T>& columns, Ranks ranks, double* out) {
  const Tile<T>& tile = columns.tile;
  const Vec<T> a = select_rank(tile, ranks.begin, columns.least, columns.most);
  if (ranks.count() > 2) {
    const Vec<T> b = select_rank(tile, ranks.end - 1, columns.least, columns.most);
    return mean_between(tile, ranks, a, b, out);
  }
  Vec<T> b = a;
  if (ranks.count() == 2) {  // the next value needs no second search
    const auto [count, next] = tile.above(a);
    b = count <= static_cast<MaskLane<T>>(tile.clients - ranks.end) ? a : next;
  }
  for (int i = 0; i < kLanes<T>; ++i) {
    const double first = static_cast<double>(a[i]);
    const double last = static_cast<double>(b[i]);
    out[i] = first == last ? first : (first + last) / 2;
  }
}

template <class T>
void sorted_mean(T* rows, int64_t clients, Ranks ranks, double* out) {
  sort_columns(rows, clients);
  for (int part = 0; part < kLanes<T>; part += kWide) {
    Vec<double> total{};
    for (int64_t g = ranks.begin; g < ranks.end; ++g) {
      total += load_wide(rows + g * kLanes<T> + part);
    }
    store(out + part, total / static_cast<double>(ranks.count()));
  }
}

// rows: (G, kLanes), overwritten; out: the first `live` columns.
template <class T>
void mean_of_ranks(T* rows, int64_t clients, Ranks ranks, int64_t live, T* out) {
  alignas(64) double mean[kLanes<T>];
  const Columns<T> columns = without_nan(rows, clients);
  if (clients <= kSortedClients) {
    sorted_mean(rows, clients, ranks, mean);
  } else {
    selected_mean(columns, ranks, mean);
  }
  for (int i = 0; i < live; ++i) {
    const bool number = columns.numbers[i] >= ranks.end;
    out[i] = number ? static_cast<T>(mean[i]) : std::numeric_limits<T>::quiet_NaN();
  }
}

// Columns [begin, begin + width) as blocks of (G, kLanes), zeros behind the last column.
template <class T>
void load_blocks(const Clients<T>& from, int64_t begin, int64_t width, T* blocks) {
  const int64_t live = from.columns - begin < width ? from.columns - begin : width;
  for (int64_t g = 0; g < from.clients; ++g) {
    const T* row = from.row(g) + begin;
    // Rows are pages apart, where the processor does not fetch ahead by itself.
    if (g + kRowsAhead < from.clients) {
      const T* ahead = from.row(g + kRowsAhead) + begin;
      for (int64_t c = 0; c < live; c += kLineValues<T>) __builtin_prefetch(ahead + c);
    }
    T* to = blocks + g * kLanes<T>;
    int64_t c = 0;
    for (; c + kLanes<T> <= live; c += kLanes<T>) store(to + c * from.clients, load(row + c));
    if (c < live) store(to + c * from.clients, load_first(row + c, static_cast<int>(live - c)));
  }
}

template <class T>
void rank_mean(const RankMeanArgs<T>& args) {
  const Clients<T>& from = args.from;
  const int64_t fitting = kRankBytes / static_cast<int64_t>(sizeof(T)) / from.clients;
  const int64_t wanted = fitting < kRankColumns ? fitting : kRankColumns;
  const int64_t width = (wanted < kLanes<T> ? 1 : wanted / kLanes<T>)*kLanes<T>;
  parallel_for_each((from.columns + width - 1) / width, [&](int64_t i) {
    Arena& arena = worker_arena();
    arena.reset(static_cast<size_t>(from.clients * width) * sizeof(T));
    T* blocks = arena.take<T>(from.clients * width);
    const int64_t begin = i * width;
    load_blocks(from, begin, width, blocks);
    for (int64_t c = begin; c < begin + width && c < from.columns; c += kLanes<T>) {
      const int64_t live = from.columns - c < kLanes<T> ? from.columns - c : kLanes<T>;
      mean_of_ranks(blocks + (c - begin) * from.clients, from.clients, Ranks{args.begin, args.end},
                    live, args.out + c);
    }
  });
}

}  // namespace metadnas::METADNAS_ISA
