// Sorting columns, one column a lane.
#pragma once

#include "aggregate/cpu/vectors.h"

namespace metadnas::METADNAS_ISA {

// Puts the smaller of each lane first.
template <class T>
METADNAS_INLINE inline void exchange(T* first, T* second) {
  const Vec<T> a = load(first);
  const Vec<T> b = load(second);
  store(first, a < b ? a : b);
  store(second, b > a ? b : a);
}

// Batcher's odd-even merge sort of the rows (G, kLanes), which hold no NaN (Knuth, The Art of
// Computer Programming, 5.2.2 M): the same exchanges whatever the values.
template <class T>
void sort_columns(T* rows, int64_t clients) {
  int64_t top = 1;
  while (2 * top < clients) top *= 2;
  for (int64_t p = top; p > 0; p /= 2) {
    int64_t part = 0;
    int64_t distance = p;
    for (int64_t q = top;; q /= 2) {
      for (int64_t start = part; start + distance < clients; start += 2 * p) {
        const int64_t end = start + p < clients - distance ? start + p : clients - distance;
        for (int64_t i = start; i < end; ++i) {
          exchange(rows + i * kLanes<T>, rows + (i + distance) * kLanes<T>);
        }
      }
      if (q == p) break;
      distance = q - p;
      part = p;
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
