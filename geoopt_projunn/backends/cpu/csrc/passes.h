// One pass over a real matrix: products of a few rows with it, or its update of low rank.

#pragma once

#include <algorithm>

#include "lanes.h"

namespace {

// Of a matrix: rows that stay in a core's own cache while all that is asked of them is done.
constexpr Index panel_bytes = 256 * 1024;
// Of a matrix, for one thread at a time.
constexpr Index chunk_rows = 128;
// Of a matrix, where the terms of an update are summed.
constexpr Index summed_rows = 4, summed_columns = 512;
// Less than this is done before another thread has woken up.
constexpr Index bytes_for_a_thread = 128 * 1024;

template <typename T>
INLINE Index panel_rows(Index m) {
  return std::max<Index>(8, panel_bytes / static_cast<Index>(sizeof(T)) / std::max<Index>(1, m));
}

inline Index chunks_of(Index n) { return (n + chunk_rows - 1) / chunk_rows; }

// Rows from `first` on, B of them: add left * rows to out_left, write right . rows to out_right.
template <typename T, int L, int R, int B>
INLINE void some_rows(const T* a, Index first, Index n, Index m, const T* left, const T* right,
                      T* out_left, T* out_right) {
  using Vector = typename Lanes<T>::Aligned;
  constexpr Index lanes = Lanes<T>::count;
  const T* row[B];
  T factor[L > 0 ? L : 1][B];
  Vector sum[R > 0 ? R : 1][B];
  for (int i = 0; i < B; ++i) {
    row[i] = a + (first + i) * m;
    for (int l = 0; l < L; ++l) factor[l][i] = left[l * n + first + i];
    for (int r = 0; r < R; ++r) sum[r][i] = Vector{};
  }
  Index j = 0;
  for (; j + lanes <= m; j += lanes) {
    Vector value[B];
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) value[i] = vector_at(row[i] + j);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector other = vector_at(right + r * m + j);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) sum[r][i] += value[i] * other;
    }
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) {
      Vector total = vector_at(out_left + l * m + j);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) total += factor[l][i] * value[i];
      vector_at(out_left + l * m + j) = total;
    }
  }
  // Sums lie one after the other, (R, B).
  const T* const sums = reinterpret_cast<const T*>(sum);
  T total[R * B > 0 ? R * B : 1];
  int q = 0;
  for (; q + 4 <= R * B; q += 4) {
    const T* const of = sums + q * lanes;
    totals_of(of, of + lanes, of + 2 * lanes, of + 3 * lanes, total + q);
  }
  for (; q < R * B; ++q) total[q] = total_of(sums + q * lanes);
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < B; ++i) out_right[r * n + first + i] = total[r * B + i];
  for (; j < m; ++j) {
    for (int i = 0; i < B; ++i) {
      for (int r = 0; r < R; ++r) out_right[r * n + first + i] += row[i][j] * right[r * m + j];
      for (int l = 0; l < L; ++l) out_left[l * m + j] += factor[l][i] * row[i][j];
    }
  }
}

template <typename T, int L, int R>
INLINE void all_rows(const T* a, Index first, Index last, Index n, Index m, const T* left,
                     const T* right, T* out_left, T* out_right) {
  // As many rows at once as leave the sums in registers.
  constexpr int B = R > 4 ? 2 : 4;
  for (; first + B <= last; first += B)
    some_rows<T, L, R, B>(a, first, n, m, left, right, out_left, out_right);
  for (; first < last; ++first)
    some_rows<T, L, R, 1>(a, first, n, m, left, right, out_left, out_right);
}

// Any number of rows: as many at once as there are registers for.
template <typename T>
INLINE void sides(const T* a, Index first, Index last, Index n, Index m, Index l, Index r,
                  const T* left, const T* right, T* out_left, T* out_right) {
  const Index panel = panel_rows<T>(m);
  for (Index begin = first; begin < last; begin += panel) {
    const Index end = std::min(last, begin + panel);
    Index i = 0, j = 0;
#define TAKE(L, R)                                                                        \
  while (l - i >= L && r - j >= R) {                                                      \
    all_rows<T, L, R>(a, begin, end, n, m, left + i * n, right + j * m, out_left + i * m, \
                      out_right + j * n);                                                 \
    i += L;                                                                               \
    j += R;                                                                               \
  }
    // clang-format off
    TAKE(4, 4) TAKE(2, 2) TAKE(1, 1)
    TAKE(8, 0) TAKE(4, 0) TAKE(2, 0) TAKE(1, 0)
    TAKE(0, 8) TAKE(0, 4) TAKE(0, 2) TAKE(0, 1)
    // clang-format on
#undef TAKE
  }
}

// Some of the terms of a += rows^T factor, U of them for B rows. They join the sum of the terms
// before them, if any, and the last ones take that sum to a.
template <typename T, int U, int B, bool is_first, bool is_last>
INLINE void some_terms(T* a, T* sum, Index columns, Index n, Index m, const T* rows,
                       const T* factor) {
  using Vector = typename Lanes<T>::Aligned;
  constexpr Index lanes = Lanes<T>::count;
  T by[U][B];
  for (int i = 0; i < B; ++i)
    for (int u = 0; u < U; ++u) by[u][i] = rows[u * n + i];
  Index j = 0;
  for (; j + lanes <= columns; j += lanes) {
    Vector total[B];
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i)
      total[i] = is_first ? Vector{} : vector_at(sum + i * summed_columns + j);
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      const Vector value = vector_at(factor + u * m + j);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) total[i] += by[u][i] * value;
    }
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) {
      if (is_last)
        vector_at(a + i * m + j) += total[i];
      else
        vector_at(sum + i * summed_columns + j) = total[i];
    }
  }
  for (; j < columns; ++j)
    for (int i = 0; i < B; ++i) {
      T* const sum_of_row = sum + i * summed_columns + j;
      T total = is_first ? 0 : *sum_of_row;
      for (int u = 0; u < U; ++u) total += by[u][i] * factor[u * m + j];
      if (is_last)
        a[i * m + j] += total;
      else
        *sum_of_row = total;
    }
}

template <typename T, int U, bool is_first, bool is_last>
INLINE void terms_of_rows(T* a, T* sum, Index count, Index columns, Index n, Index m, const T* rows,
                          const T* factor) {
  Index i = 0;
  for (; i + 2 <= count; i += 2)
    some_terms<T, U, 2, is_first, is_last>(a + i * m, sum + i * summed_columns, columns, n, m,
                                           rows + i, factor);
  for (; i < count; ++i)
    some_terms<T, U, 1, is_first, is_last>(a + i * m, sum + i * summed_columns, columns, n, m,
                                           rows + i, factor);
}

// a (count, columns of m) += rows^T factor. The terms are small where a step is, and a is not: they
// are summed first, for each rounding of a to be one in a step.
template <typename T>
INLINE void update_block(T* a, Index count, Index columns, Index n, Index m, Index terms,
                         const T* rows, const T* factor) {
  T sum[summed_rows * summed_columns];
  Index u = 0;
#define TAKE(U)                                                                \
  for (; terms - u >= U; u += U) {                                             \
    const T *by = rows + u * n, *of = factor + u * m;                          \
    const bool is_first = u == 0, is_last = u + U == terms;                    \
    if (is_first && is_last)                                                   \
      terms_of_rows<T, U, true, true>(a, sum, count, columns, n, m, by, of);   \
    else if (is_first)                                                         \
      terms_of_rows<T, U, true, false>(a, sum, count, columns, n, m, by, of);  \
    else if (is_last)                                                          \
      terms_of_rows<T, U, false, true>(a, sum, count, columns, n, m, by, of);  \
    else                                                                       \
      terms_of_rows<T, U, false, false>(a, sum, count, columns, n, m, by, of); \
  }
  TAKE(8) TAKE(4) TAKE(2) TAKE(1)
#undef TAKE
}

template <typename T>
INLINE void updates(T* a, Index first, Index last, Index n, Index m, Index terms, const T* rows,
                    const T* factor) {
  // Those that are taken at once need no memory for their sum.
  if (terms == 1 || terms == 2 || terms == 4 || terms == 8)
    return update_block(a + first * m, last - first, m, n, m, terms, rows + first, factor);
  for (; first < last; first += summed_rows)
    for (Index j = 0; j < m; j += summed_columns)
      update_block(a + first * m + j, std::min(summed_rows, last - first),
                   std::min(summed_columns, m - j), n, m, terms, rows + first, factor + j);
}

#define FOR_TYPE(T)                                                                               \
  FOR_EACH_CPU void sides_of(const T* a, Index first, Index last, Index n, Index m, Index l,      \
                             Index r, const T* left, const T* right, T* out_left, T* out_right) { \
    sides(a, first, last, n, m, l, r, left, right, out_left, out_right);                          \
  }                                                                                               \
  FOR_EACH_CPU void update_of(T* a, Index first, Index last, Index n, Index m, Index terms,       \
                              const T* rows, const T* factor) {                                   \
    updates(a, first, last, n, m, terms, rows, factor);                                           \
  }
FOR_TYPE(float)
FOR_TYPE(double)
#undef FOR_TYPE

}  // namespace
