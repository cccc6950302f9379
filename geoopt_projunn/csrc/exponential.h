// The retraction of geoopt_projunn.retractions.exponential, of one core after the other.

#pragma once

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "passes.h"

namespace {

constexpr double longest_generator = 170;
// Up to this norm the Taylor polynomial has the accuracy of a double.
constexpr double short_enough = 0.04;
constexpr int taylor_degree = 8;

// Complex (r, r) matrices are real ones of 2r, [[Re, -Im], [Im, Re]] for each entry.
class Exponential {
 public:
  Exponential(Index r, Index parts)
      : r_(r), parts_(parts), size_(parts * r), generator_(size_ * size_), delta_(size_ * size_),
        left_(size_ * size_), product_(size_ * size_) {}

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

  // product_ = a b
  void multiply(const std::vector<double>& a, const std::vector<double>& b) {
    for (Index i = 0; i < size_; ++i)
      for (Index j = 0; j < size_; ++j) left_[j * size_ + i] = a[i * size_ + j];
    std::fill(product_.begin(), product_.end(), 0.0);
    update_of(product_.data(), 0, size_, size_, size_, size_, left_.data(), b.data());
  }

  Index r_, parts_, size_;
  std::vector<double> generator_, delta_, left_, product_;
};

}  // namespace
