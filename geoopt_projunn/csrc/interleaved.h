// Rows of complex numbers, real and imaginary parts in turn.

#pragma once

#include <algorithm>

#include "lanes.h"

namespace {

// Entries of one or two real numbers, `from_step` and `to_step` numbers apart.
template <typename T>
void copy_entries(const T* from, Index from_step, T* to, Index to_step, Index count, Index parts) {
  for (Index i = 0; i < count; ++i) to[i * to_step] = from[i * from_step];
  if (parts == 2)
    for (Index i = 0; i < count; ++i) to[i * to_step + 1] = from[i * from_step + 1];
}

// Times i or -i.
template <typename T>
void times_i(const T* from, Index count, T sign, T* to) {
  for (Index j = 0; j < 2 * count; j += 2) {
    to[j] = -sign * from[j + 1];
    to[j + 1] = sign * from[j];
  }
}

// To real rows, two for each: those that combine rows of a matrix from the left, and those that
// its rows are multiplied with.
template <typename T>
void real_from_left(const T* rows, Index count, Index n, T* to) {
  for (Index row = 0; row < count; ++row)
    for (Index j = 0; j < n; ++j) {
      to[2 * row * n + j] = rows[2 * (row * n + j)];
      to[(2 * row + 1) * n + j] = rows[2 * (row * n + j) + 1];
    }
}

template <typename T>
void real_from_right(const T* rows, Index count, Index m, T* to) {
  for (Index row = 0; row < count; ++row) {
    std::copy_n(rows + 2 * row * m, 2 * m, to + 4 * row * m);
    times_i(rows + 2 * row * m, m, T(-1), to + (4 * row + 2) * m);
  }
}

template <typename T>
void conjugate(T* rows, Index count) {
  for (Index j = 1; j < 2 * count; j += 2) rows[j] = -rows[j];
}

}  // namespace
