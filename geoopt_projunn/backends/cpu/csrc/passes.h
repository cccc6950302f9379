// One pass over a real matrix: products of a few rows with it, or its update of low rank.

#pragma once

#include <algorithm>

#include "dots.h"
#include "lanes.h"
#include "tiles.h"

namespace {

// Of a matrix: rows that stay in a core's own cache while all that is asked of them is done.
constexpr Index panel_bytes = 256 * 1024;
// Of a matrix, for one thread at a time.
constexpr Index chunk_rows = 128;
// Less than this is done before another thread has woken up.
constexpr Index bytes_for_a_thread = 128 * 1024;

template <typename T>
INLINE Index panel_rows(Index m) {
  return std::max<Index>(8, panel_bytes / static_cast<Index>(sizeof(T)) / std::max<Index>(1, m));
}

inline Index chunks_of(Index n) { return (n + chunk_rows - 1) / chunk_rows; }

// Rows from `first` on, B of them: add left * rows to out_left, write right . rows to out_right.
template <int W, int L, int R, int B, typename T>
INLINE void some_rows(const T* a, Index first, Index n, Index m, const T* left, const T* right,
                      T* out_left, T* out_right) {
  using Vector = typename Lanes<W, T>::Aligned;
  constexpr Index lanes = Lanes<W, T>::count;
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
    for (int i = 0; i < B; ++i) value[i] = vector_at<W>(row[i] + j);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector other = vector_at<W>(right + r * m + j);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) sum[r][i] += value[i] * other;
    }
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) {
      Vector total = vector_at<W>(out_left + l * m + j);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) total += factor[l][i] * value[i];
      vector_at<W>(out_left + l * m + j) = total;
    }
  }
  T total[R * B > 0 ? R * B : 1];
  totals<W, R * B>(reinterpret_cast<const T*>(sum), total);
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < B; ++i) out_right[r * n + first + i] = total[r * B + i];
  for (; j < m; ++j) {
    for (int i = 0; i < B; ++i) {
      for (int r = 0; r < R; ++r) out_right[r * n + first + i] += row[i][j] * right[r * m + j];
      for (int l = 0; l < L; ++l) out_left[l * m + j] += factor[l][i] * row[i][j];
    }
  }
}

template <int W, int L, int R, typename T>
INLINE void all_rows(const T* a, Index first, Index last, Index n, Index m, const T* left,
                     const T* right, T* out_left, T* out_right) {
  for (; first + 4 <= last; first += 4)
    some_rows<W, L, R, 4>(a, first, n, m, left, right, out_left, out_right);
  for (; first < last; ++first)
    some_rows<W, L, R, 1>(a, first, n, m, left, right, out_left, out_right);
}

// Any number of rows. Many are taken by tiles, from one side after the other; of the last few,
// reading is the work: they are taken from both sides at once.
template <int W, typename T>
INLINE void sides_of_by(const T* a, Index first, Index last, Index n, Index m, Index l, Index r,
                        const T* left, const T* right, T* out_left, T* out_right) {
  constexpr Index many = registers_of(W) == 32 ? 8 : 4;
  const Index panel = panel_rows<T>(m);
  for (Index begin = first; begin < last; begin += panel) {
    const Index end = std::min(last, begin + panel);
    Index i = l / many * many, j = r / many * many;
    if (j > 0) all_dots<W>(a + begin * m, end - begin, m, right, j, out_right + begin, n);
    if (i > 0) add_terms<W>(out_left, m, i, m, {end - begin, left + begin, n, 1, a + begin * m, m});
#define TAKE(L, R)                                                                        \
  while (l - i >= L && r - j >= R) {                                                      \
    all_rows<W, L, R>(a, begin, end, n, m, left + i * n, right + j * m, out_left + i * m, \
                      out_right + j * n);                                                 \
    i += L;                                                                               \
    j += R;                                                                               \
  }
    // clang-format off
    if constexpr (many > 4) { TAKE(4, 4) }
    TAKE(2, 2) TAKE(1, 1)
    if constexpr (many > 4) { TAKE(4, 0) }
    TAKE(2, 0) TAKE(1, 0)
    if constexpr (many > 4) { TAKE(0, 4) }
    TAKE(0, 2) TAKE(0, 1)
    // clang-format on
#undef TAKE
  }
}

// a += rows^T factor, for its rows first to last.
template <int W, typename T>
INLINE void update_of_by(T* a, Index first, Index last, Index n, Index m, Index terms,
                         const T* rows, const T* factor) {
  add_terms<W>(a + first * m, m, last - first, m, {terms, rows + first, 1, n, factor, m});
}

#define FOR_TYPE(T)                                                                             \
  FOR_EACH_WIDTH(void, sides_of,                                                                \
                 (const T* a, Index first, Index last, Index n, Index m, Index l, Index r,      \
                  const T* left, const T* right, T* out_left, T* out_right),                    \
                 (a, first, last, n, m, l, r, left, right, out_left, out_right))                \
  FOR_EACH_WIDTH(void, update_of,                                                               \
                 (T * a, Index first, Index last, Index n, Index m, Index terms, const T* rows, \
                  const T* factor),                                                             \
                 (a, first, last, n, m, terms, rows, factor))
FOR_TYPE(float)
FOR_TYPE(double)
#undef FOR_TYPE

}  // namespace
