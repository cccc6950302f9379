// The retraction of geoopt_projunn.retractions.exponential, of one core after the other.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "lanes.h"

namespace {

constexpr double longest_generator = 170;
// Up to this norm the Taylor polynomial has the accuracy of a double.
constexpr double short_enough = 0.04;
constexpr int taylor_degree = 8;

// B rows of out = a b from `row` on, (n, n) all, in the columns of one vector from `j` on.
template <int B>
INLINE void some_of_product(Index n, const double* a, const double* b, double* out, Index row,
                            Index j) {
  Lanes<double>::Aligned sum[B] = {};
  for (Index l = 0; l < n; ++l) {
    const Lanes<double>::Aligned value = vector_at(b + l * n + j);
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) sum[i] += a[(row + i) * n + l] * value;
  }
#pragma GCC unroll 8
  for (int i = 0; i < B; ++i) vector_at(out + (row + i) * n + j) = sum[i];
}

// The smallest, of rank one and two, are all that most steps need: without loops.
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
FOR_EACH_CPU void square_product(Index n, const double* a, const double* b, double* out) {
  if (n == 2) return small_product<2>(a, b, out);
  if (n == 4) return small_product<4>(a, b, out);
  constexpr Index lanes = Lanes<double>::count;
  Index j = 0;
  for (; j + lanes <= n; j += lanes) {
    Index row = 0;
    for (; row + 8 <= n; row += 8) some_of_product<8>(n, a, b, out, row, j);
    for (; row < n; ++row) some_of_product<1>(n, a, b, out, row, j);
  }
  for (Index row = 0; row < n && j < n; ++row) {
    std::fill(out + row * n + j, out + (row + 1) * n, 0.0);
    for (Index l = 0; l < n; ++l)
      for (Index rest = j; rest < n; ++rest)
        out[row * n + rest] += a[row * n + l] * b[l * n + rest];
  }
}

// Complex (r, r) matrices are real ones of 2r, [[Re, -Im], [Im, Re]] for each entry.
class Exponential {
 public:
  Exponential(Index r, Index parts)
      : r_(r),
        parts_(parts),
        size_(parts * r),
        generator_(size_ * size_),
        delta_(size_ * size_),
        product_(size_ * size_) {}

  // delta = exp(skewh(core)) - I
  void operator()(const double* core, double* delta) {
    int squarings = 0;
    const double scale = take_skew_part(core, &squarings);
    for (double& entry : generator_) entry *= scale;
    delta_ = generator_;
    for (int degree = taylor_degree; degree > 1; --degree) {
      multiply(generator_, delta_);
      for (std::size_t i = 0; i < delta_.size(); ++i)
        delta_[i] = generator_[i] + product_[i] / degree;
    }
    for (int i = 0; i < squarings; ++i) {
      multiply(delta_, delta_);
      for (std::size_t j = 0; j < delta_.size(); ++j) delta_[j] = 2 * delta_[j] + product_[j];
    }
    for (Index i = 0; i < r_; ++i)
      for (Index j = 0; j < r_; ++j)
        for (Index part = 0; part < parts_; ++part)
          delta[parts_ * (i * r_ + j) + part] = delta_[(parts_ * i + part) * size_ + parts_ * j];
  }

 private:
  // Fill generator_; return what makes it short enough before that many squarings.
  double take_skew_part(const double* core, int* squarings) {
    double square = 0;
    for (Index i = 0; i < r_; ++i)
      for (Index j = 0; j < r_; ++j) {
        const double *a = core + parts_ * (i * r_ + j), *b = core + parts_ * (j * r_ + i);
        double* to = generator_.data() + parts_ * (i * size_ + j);
        to[0] = (a[0] - b[0]) / 2;
        square += to[0] * to[0];
        if (parts_ == 2) {
          to[size_] = (a[1] + b[1]) / 2;
          square += to[size_] * to[size_];
          to[1] = -to[size_];
          to[size_ + 1] = to[0];
        }
      }
    const double length = std::sqrt(square);
    double scale = length > longest_generator ? longest_generator / length : 1;
    for (; length * scale > short_enough; scale /= 2) ++*squarings;
    return scale;
  }

  void multiply(const std::vector<double>& a, const std::vector<double>& b) {
    square_product(size_, a.data(), b.data(), product_.data());
  }

  Index r_, parts_, size_;
  std::vector<double> generator_, delta_, product_;
};

}  // namespace
