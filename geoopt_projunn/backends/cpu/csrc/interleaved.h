// Rows of complex numbers, real and imaginary parts in turn, from and to real rows.

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

template <typename T>
INLINE void conjugate_all(T* rows, Index count) {
  for (Index j = 0; j < count; ++j) rows[2 * j + 1] = -rows[2 * j + 1];
}

template <typename T>
INLINE void times_i_all(const T* __restrict from, Index count, T sign, T* __restrict to) {
  for (Index j = 0; j < count; ++j) {
    to[2 * j] = -sign * from[2 * j + 1];
    to[2 * j + 1] = sign * from[2 * j];
  }
}

template <typename T>
INLINE void add_times_i_all(const T* __restrict real, const T* __restrict imaginary, Index count,
                            T* __restrict to) {
  for (Index j = 0; j < count; ++j) {
    to[2 * j] = real[2 * j] - imaginary[2 * j + 1];
    to[2 * j + 1] = real[2 * j + 1] + imaginary[2 * j];
  }
}

template <typename T>
INLINE void part_all(const T* __restrict from, Index count, T* __restrict real,
                     T* __restrict imaginary) {
  for (Index j = 0; j < count; ++j) {
    real[j] = from[2 * j];
    imaginary[j] = from[2 * j + 1];
  }
}

template <typename T>
INLINE void join_all(const T* __restrict real, const T* __restrict imaginary, Index count,
                     T* __restrict to) {
  for (Index j = 0; j < count; ++j) {
    to[2 * j] = real[j];
    to[2 * j + 1] = imaginary[j];
  }
}

#define FOR_TYPE(T)                                                                      \
  FOR_EACH_CPU void conjugate(T* rows, Index count) { conjugate_all(rows, count); }      \
  /* Times i or -i. */                                                                   \
  FOR_EACH_CPU void times_i(const T* from, Index count, T sign, T* to) {                 \
    times_i_all(from, count, sign, to);                                                  \
  }                                                                                      \
  /* real + i imaginary, for complex rows of that name */                                \
  FOR_EACH_CPU void add_times_i(const T* real, const T* imaginary, Index count, T* to) { \
    add_times_i_all(real, imaginary, count, to);                                         \
  }                                                                                      \
  FOR_EACH_CPU void part(const T* from, Index count, T* real, T* imaginary) {            \
    part_all(from, count, real, imaginary);                                              \
  }                                                                                      \
  FOR_EACH_CPU void join(const T* real, const T* imaginary, Index count, T* to) {        \
    join_all(real, imaginary, count, to);                                                \
  }
FOR_TYPE(float)
FOR_TYPE(double)
#undef FOR_TYPE

// To real rows, two for each: those that combine rows of a matrix from the left, and those that
// its rows are multiplied with.
template <typename T>
void real_from_left(const T* rows, Index count, Index n, T* to) {
  for (Index row = 0; row < count; ++row)
    part(rows + 2 * row * n, n, to + 2 * row * n, to + (2 * row + 1) * n);
}

template <typename T>
void real_from_right(const T* rows, Index count, Index m, T* to) {
  for (Index row = 0; row < count; ++row) {
    std::copy_n(rows + 2 * row * m, 2 * m, to + 4 * row * m);
    times_i(rows + 2 * row * m, m, T(-1), to + (4 * row + 2) * m);
  }
}

}  // namespace
