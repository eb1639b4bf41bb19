// Sorting columns, one column a lane.
#pragma once

#include "aggregate/cpu/vectors.h"

namespace metadnas::METADNAS_ISA {

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
      for (int64_t i = 0; i + distance < clients; ++i) {
        if ((i & p) != part) continue;
        T* const first = rows + i * kLanes<T>;
        T* const second = first + distance * kLanes<T>;
        const Vec<T> a = load(first);
        const Vec<T> b = load(second);
        store(first, a < b ? a : b);
        store(second, a < b ? b : a);
      }
      if (q == p) break;
      distance = q - p;
      part = p;
    }
  }
}

}  // namespace metadnas::METADNAS_ISA
