// Sums of products that update a matrix of a few rows, or by a few rows, in tiles that stay in
// registers.

#pragma once

#include <algorithm>

#include "lanes.h"

namespace {

// out[i] += the sum over terms u of by[i * row_step + u * term_step] * factor[u], for rows i. Terms
// are summed first, so that `out`, which they may be small against, is rounded once.
template <typename T>
struct Terms {
  Index count;
  const T* by;
  Index row_step, term_step;
  const T* factor;
  Index step;
};

// I rows from `row` on and J vectors from `column` on.
template <int W, int I, int J, typename T>
INLINE void add_tile(T* out, Index out_step, const Terms<T>& terms, Index row, Index column) {
  using Vector = typename Lanes<W, T>::Aligned;
  constexpr Index lanes = Lanes<W, T>::count;
  const T* by = terms.by + row * terms.row_step;
  const T* factor = terms.factor + column;
  out += row * out_step + column;
  Vector sum[I][J] = {};
  for (Index u = 0; u < terms.count; ++u) {
    Vector value[J];
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) value[j] = vector_at<W>(factor + j * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < I; ++i) {
      const T share = by[i * terms.row_step];
#pragma GCC unroll 8
      for (int j = 0; j < J; ++j) sum[i][j] += share * value[j];
    }
    by += terms.term_step;
    factor += terms.step;
  }
#pragma GCC unroll 8
  for (int i = 0; i < I; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) vector_at<W>(out + i * out_step + j * lanes) += sum[i][j];
}

// The last columns, fewer than a vector twice as wide has.
template <int W, int I, typename T>
INLINE void add_last_columns(T* out, Index out_step, const Terms<T>& terms, Index row, Index column,
                             Index columns) {
  constexpr Index lanes = Lanes<W, T>::count;
  if (columns - column >= lanes) {
    add_tile<W, I, 1>(out, out_step, terms, row, column);
    column += lanes;
  }
  if constexpr (W > 16) {
    add_last_columns<W / 2, I>(out, out_step, terms, row, column, columns);
  } else {
    for (; column < columns; ++column)
      for (Index i = row; i < row + I; ++i) {
        T sum = 0;
        for (Index u = 0; u < terms.count; ++u)
          sum += terms.by[i * terms.row_step + u * terms.term_step] *
                 terms.factor[u * terms.step + column];
        out[i * out_step + column] += sum;
      }
  }
}

template <int W, int I, typename T>
INLINE void add_columns(T* out, Index out_step, const Terms<T>& terms, Index row, Index columns) {
  constexpr Index lanes = Lanes<W, T>::count;
  Index column = 0;
  for (Index vectors = columns / lanes; vectors > 0; vectors = (columns - column) / lanes) {
    // Four are two and two.
    const int some = vectors == 4 ? 2 : static_cast<int>(std::min<Index>(3, vectors));
    if (some == 3)
      add_tile<W, I, 3>(out, out_step, terms, row, column);
    else if (some == 2)
      add_tile<W, I, 2>(out, out_step, terms, row, column);
    else
      add_tile<W, I, 1>(out, out_step, terms, row, column);
    column += some * lanes;
  }
  constexpr int narrower = W > 16 ? W / 2 : 16;
  if (column < columns) add_last_columns<narrower, I>(out, out_step, terms, row, column, columns);
}

// All of out (rows, columns).
template <int W, typename T>
INLINE void add_terms(T* out, Index out_step, Index rows, Index columns, const Terms<T>& terms) {
  // As many rows as leave the sums of three vectors each in registers.
  constexpr int most = registers_of(W) == 32 ? 8 : 4;
  Index row = 0;
  for (; rows - row >= most; row += most) add_columns<W, most>(out, out_step, terms, row, columns);
  for (; rows - row >= 4; row += 4) add_columns<W, 4>(out, out_step, terms, row, columns);
  for (; rows - row >= 2; row += 2) add_columns<W, 2>(out, out_step, terms, row, columns);
  for (; row < rows; ++row) add_columns<W, 1>(out, out_step, terms, row, columns);
}

}  // namespace
