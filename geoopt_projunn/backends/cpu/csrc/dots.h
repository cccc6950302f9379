// Products of a few rows with the rows of a matrix.

#pragma once

#include "lanes.h"

namespace {

// out[r * n + i] = right[r] . a[i] over m columns, R x B of them.
template <int W, int R, int B, typename T>
INLINE void dot_tile(const T* a, Index m, const T* right, T* out, Index n) {
  using Vector = typename Lanes<W, T>::Aligned;
  constexpr Index lanes = Lanes<W, T>::count;
  Vector sum[R][B] = {};
  Index j = 0;
  for (; j + lanes <= m; j += lanes) {
    Vector value[B];
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) value[i] = vector_at<W>(a + i * m + j);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector other = vector_at<W>(right + r * m + j);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) sum[r][i] += value[i] * other;
    }
  }
  T total[R * B];
  totals<W, R * B>(reinterpret_cast<const T*>(sum), total);
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < B; ++i) {
      T rest = 0;
      for (Index c = j; c < m; ++c) rest += a[i * m + c] * right[r * m + c];
      out[r * n + i] = total[r * B + i] + rest;
    }
}

// The same of `few` rows, a multiple of four, and of any number of rows of the matrix.
template <int W, typename T>
INLINE void all_dots(const T* a, Index rows, Index m, const T* right, Index few, T* out, Index n) {
  // As many at once as leave the sums in registers.
  constexpr int R = registers_of(W) == 32 ? 4 : 2;
  for (Index r = 0; r < few; r += R) {
    Index i = 0;
    for (; i + 4 <= rows; i += 4)
      dot_tile<W, R, 4>(a + i * m, m, right + r * m, out + r * n + i, n);
    for (; i < rows; ++i) dot_tile<W, R, 1>(a + i * m, m, right + r * m, out + r * n + i, n);
  }
}

}  // namespace
