// Square matrices of a few rows, the cores of steps; complex ones as real ones of twice the size.

#pragma once

#include <algorithm>
#include <cmath>

#include "buffers.h"
#include "lanes.h"

namespace {

// B rows of out = a b from `row` on, (n, n) all, in the columns of one vector from `j` on.
template <int W, int B>
INLINE void some_of_product(Index n, const double* a, const double* b, double* out, Index row,
                            Index j) {
  using Vector = typename Lanes<W, double>::Aligned;
  Vector sum[B] = {};
  for (Index l = 0; l < n; ++l) {
    const Vector value = vector_at<W>(b + l * n + j);
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) sum[i] += a[(row + i) * n + l] * value;
  }
#pragma GCC unroll 8
  for (int i = 0; i < B; ++i) vector_at<W>(out + (row + i) * n + j) = sum[i];
}

// The smallest, of real matrices of rank one and two and complex ones of rank one: without loops.
template <int n>
INLINE void small_product(const double* a, const double* b, double* out) {
  double sum[n * n] = {};
#pragma GCC unroll 4
  for (int row = 0; row < n; ++row)
#pragma GCC unroll 4
    for (int l = 0; l < n; ++l)
#pragma GCC unroll 4
      for (int j = 0; j < n; ++j) sum[row * n + j] += a[row * n + l] * b[l * n + j];
  std::copy_n(sum, n * n, out);
}

// out = a b, all (n, n)
template <int W>
INLINE void square_product_by(Index n, const double* a, const double* b, double* out) {
  if (n == 2) return small_product<2>(a, b, out);
  if (n == 4) return small_product<4>(a, b, out);
  constexpr Index lanes = Lanes<W, double>::count;
  Index j = 0;
  for (; j + lanes <= n; j += lanes) {
    Index row = 0;
    for (; row + 8 <= n; row += 8) some_of_product<W, 8>(n, a, b, out, row, j);
    for (; row < n; ++row) some_of_product<W, 1>(n, a, b, out, row, j);
  }
  for (Index row = 0; row < n && j < n; ++row) {
    std::fill(out + row * n + j, out + (row + 1) * n, 0.0);
    for (Index l = 0; l < n; ++l)
      for (Index rest = j; rest < n; ++rest)
        out[row * n + rest] += a[row * n + l] * b[l * n + rest];
  }
}

FOR_EACH_WIDTH(void, square_product, (Index n, const double* a, const double* b, double* out),
               (n, a, b, out))

// b = a^-1 b, all (n, n), by elimination with partial pivoting; a is overwritten.
FOR_EACH_CPU void solve_square(Index n, double* a, double* b) {
  for (Index column = 0; column < n; ++column) {
    Index pivot = column;
    for (Index row = column + 1; row < n; ++row)
      if (std::abs(a[row * n + column]) > std::abs(a[pivot * n + column])) pivot = row;
    if (pivot != column) {
      std::swap_ranges(a + pivot * n, a + (pivot + 1) * n, a + column * n);
      std::swap_ranges(b + pivot * n, b + (pivot + 1) * n, b + column * n);
    }
    const double by = 1 / a[column * n + column];
    for (Index row = column + 1; row < n; ++row) {
      const double share = a[row * n + column] * by;
      for (Index j = column + 1; j < n; ++j) a[row * n + j] -= share * a[column * n + j];
      for (Index j = 0; j < n; ++j) b[row * n + j] -= share * b[column * n + j];
    }
  }
  for (Index row = n; row-- > 0;) {
    for (Index l = row + 1; l < n; ++l)
      for (Index j = 0; j < n; ++j) b[row * n + j] -= a[row * n + l] * b[l * n + j];
    for (Index j = 0; j < n; ++j) b[row * n + j] /= a[row * n + row];
  }
}

// a = by a + share b
FOR_EACH_CPU void combine(Index count, double by, double* a, double share, const double* b) {
  for (Index i = 0; i < count; ++i) a[i] = by * a[i] + share * b[i];
}

using Small = Buffer<double>;

inline double norm_of(const Small& a) {
  double square = 0;
  for (double entry : a) square += entry * entry;
  return std::sqrt(square);
}

// A function of cores, one after the other.
class Retraction {
 public:
  virtual ~Retraction() = default;
  // delta = P - I, (r, r) as the core.
  virtual void operator()(const double* core, double* delta) = 0;

 protected:
  Retraction(Index r, Index parts) : r_(r), parts_(parts), size_(parts * r) {}

  Small matrix() const { return Small(size_ * size_); }

  // Each complex entry becomes [[Re, -Im], [Im, Re]].
  void embed(const double* core, Small* to) const {
    for (Index i = 0; i < r_; ++i)
      for (Index j = 0; j < r_; ++j) {
        const double* from = core + parts_ * (i * r_ + j);
        double* entry = to->data() + parts_ * (i * size_ + j);
        entry[0] = from[0];
        if (parts_ == 2) {
          entry[1] = -from[1];
          entry[size_] = from[1];
          entry[size_ + 1] = from[0];
        }
      }
  }
  void extract(const Small& from, double* to) const {
    for (Index i = 0; i < r_; ++i)
      for (Index j = 0; j < r_; ++j)
        for (Index part = 0; part < parts_; ++part)
          to[parts_ * (i * r_ + j) + part] = from[(parts_ * i + part) * size_ + parts_ * j];
  }

  // b = a^-1 b of embedded matrices; a is overwritten.
  void solve(Small* a, Small* b) const {
    solve_square(size_, a->data(), b->data());
    if (parts_ == 1) return;
    // Elimination, which takes no heed of it, loses what makes a real matrix a complex one.
    for (Index i = 0; i < size_; i += 2)
      for (Index j = 0; j < size_; j += 2) {
        double *upper = b->data() + i * size_ + j, *lower = upper + size_;
        const double real = (upper[0] + lower[1]) / 2, imaginary = (lower[0] - upper[1]) / 2;
        upper[0] = lower[1] = real;
        lower[0] = imaginary;
        upper[1] = -imaginary;
      }
  }

  // The norm of what was embedded.
  double length_of(const Small& a) const {
    return norm_of(a) / std::sqrt(static_cast<double>(parts_));
  }
  void multiply(const Small& a, const Small& b, Small* out) const {
    square_product(size_, a.data(), b.data(), out->data());
  }
  void transpose(const Small& a, Small* out) const {
    for (Index i = 0; i < size_; ++i)
      for (Index j = 0; j < size_; ++j) (*out)[j * size_ + i] = a[i * size_ + j];
  }
  // skewh of a core
  void embed_skew(const double* core, Small* to) const {
    embed(core, to);
    for (Index i = 0; i < size_; ++i)
      for (Index j = 0; j <= i; ++j) {
        double &lower = (*to)[i * size_ + j], &upper = (*to)[j * size_ + i];
        const double half = (lower - upper) / 2;
        lower = half;
        upper = -half;
      }
  }
  void add_to_diagonal(double value, Small* a) const {
    for (Index i = 0; i < size_; ++i) (*a)[i * size_ + i] += value;
  }

  Index r_, parts_, size_;
};

}  // namespace
