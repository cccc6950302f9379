// Orthonormal bases of a few rows, in double precision, safe for dependent and zero rows.

#pragma once

#include <algorithm>
#include <cmath>

#include "buffers.h"
#include "interleaved.h"
#include "passes.h"

namespace {

// Rows arrive in single or double precision. A remainder below this fraction is rounding.
constexpr double dependent = 1e-10;
// Less than this is left where a projection has cancelled digits: it is done again.
constexpr double cancelled = 0.7;
constexpr int most_projections = 3;

// The sum of the squares of numbers, in double precision.
template <int W, typename T>
INLINE double square_of_by(const T* numbers, Index count) {
  using Wide = typename Lanes<W, double>::Aligned;
  constexpr Index lanes = Lanes<W, double>::count;
  typedef T Part __attribute__((vector_size(lanes * sizeof(T)), aligned(sizeof(T)), may_alias));
  // Two sums at once: one alone would wait for itself.
  Wide sum[2] = {};
  Index j = 0;
  for (; j + 2 * lanes <= count; j += 2 * lanes)
    for (Index i = 0; i < 2; ++i) {
      const Part* const part = reinterpret_cast<const Part*>(numbers + j + i * lanes);
      const Wide value = __builtin_convertvector(*part, Wide);
      sum[i] += value * value;
    }
  sum[0] += sum[1];
  double total = total_of<W>(reinterpret_cast<const double*>(sum));
  for (; j < count; ++j) total += static_cast<double>(numbers[j]) * static_cast<double>(numbers[j]);
  return total;
}

FOR_EACH_WIDTH(double, square_of, (const float* numbers, Index count), (numbers, count))
FOR_EACH_WIDTH(double, square_of, (const double* numbers, Index count), (numbers, count))

// Squares in this range are far from the limits of a double.
constexpr double least_square = 1e-200;
constexpr double largest_square = 1e200;

inline bool is_safe(double square) { return square > least_square && square < largest_square; }

template <typename T>
double largest_of(const T* numbers, Index count) {
  double largest = 0;
  for (Index j = 0; j < count; ++j)
    largest = std::max(largest, std::abs(static_cast<double>(numbers[j])));
  return largest;
}

// The norm of a row, which is divided by its largest entry where squares leave the range.
inline double safe_norm(double* row, Index width) {
  const double square = square_of(row, width);
  if (is_safe(square)) return std::sqrt(square);
  const double largest = largest_of(row, width);
  if (largest > 0)
    for (Index j = 0; j < width; ++j) row[j] /= largest;
  return std::sqrt(square_of(row, width));
}

// The norm of numbers, whatever their size.
template <typename T>
double length_of(const T* numbers, Index count) {
  double square = square_of(numbers, count);
  if (is_safe(square)) return std::sqrt(square);
  const double largest = largest_of(numbers, count);
  if (largest == 0) return 0;
  square = 0;
  for (Index j = 0; j < count; ++j) {
    const double share = static_cast<double>(numbers[j]) / largest;
    square += share * share;
  }
  return largest * std::sqrt(square);
}

// Orthonormal rows of at most `width` real numbers. To a complex row belongs its product with i:
// the real projection on both is the complex one on the row.
class Basis {
 public:
  Basis(Index width, Index parts, Index most)
      : width_(width), parts_(parts), rows_(parts * most * width), along_(parts * most) {}

  // Begin anew with rows of `width` real numbers.
  void clear(Index width) {
    width_ = width;
    count_ = 0;
  }
  Index width() const { return width_; }
  Index count() const { return count_; }
  const double* row(Index index) const { return rows_.data() + parts_ * index * width_; }

  // Add a row: what is new in it at unit length, or zeros where nothing is. The row is spent.
  void add(double* row) {
    const double whole = safe_norm(row, width_);
    double rest = whole;
    for (int i = 0; i < most_projections && count_ > 0; ++i) {
      const double before = rest;
      project_out(row);
      rest = std::sqrt(square_of(row, width_));
      // Also where the row is not finite, which has to show.
      if (!(rest < cancelled * before)) break;
    }
    double* to = rows_.data() + parts_ * count_ * width_;
    const double by = rest <= dependent * whole ? 0 : 1 / rest;
    for (Index j = 0; j < width_; ++j) to[j] = row[j] * by;
    if (parts_ == 2) times_i(to, width_ / 2, 1.0, to + width_);
    ++count_;
  }

  // Inner products of `number` rows with all of the basis, (number, count); for complex rows, of
  // <basis row, row> the real part and the negative imaginary one.
  void inner_products(const double* rows, Index number, double* out) const {
    const Index all = parts_ * count_;
    sides_of(rows_.data(), 0, all, all, width_, 0, number, nullptr, rows, nullptr, out);
  }

 private:
  void project_out(double* row) {
    const Index all = parts_ * count_;
    inner_products(row, 1, along_.data());
    for (Index i = 0; i < all; ++i) along_[i] = -along_[i];
    update_of(row, 0, 1, 1, width_, all, along_.data(), rows_.data());
  }

  Index width_, parts_, count_ = 0;
  Buffer<double> rows_, along_;
};

}  // namespace
