// The retractions of geoopt_projunn.retractions, of one core after the other.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "small.h"

namespace {

class Exponential final : public Retraction {
 public:
  Exponential(Index r, Index parts)
      : Retraction(r, parts), generator_(matrix()), delta_(matrix()), product_(matrix()) {}

  void operator()(const double* core, double* delta) override {
    embed_skew(core, &generator_);
    const double length = length_of(generator_);
    double scale = length > longest ? longest / length : 1;
    int squarings = 0;
    for (; length * scale > short_enough; scale /= 2) ++squarings;
    for (double& entry : generator_) entry *= scale;
    // The polynomial by Horner's rule: g, g + g g / 8, g + g (g + g g / 8) / 7, ...
    delta_ = generator_;
    for (int degree = taylor_degree; degree > 1; --degree) {
      multiply(generator_, delta_, &product_);
      delta_ = generator_;
      combine(size_ * size_, 1, delta_.data(), 1.0 / degree, product_.data());
    }
    for (int i = 0; i < squarings; ++i) {
      multiply(delta_, delta_, &product_);
      combine(size_ * size_, 2, delta_.data(), 1, product_.data());
    }
    extract(delta_, delta);
  }

 private:
  static constexpr double longest = 170;
  // Up to this norm the Taylor polynomial has the accuracy of a double.
  static constexpr double short_enough = 0.04;
  static constexpr int taylor_degree = 8;
  Small generator_, delta_, product_;
};

class Cayley final : public Retraction {
 public:
  Cayley(Index r, Index parts)
      : Retraction(r, parts), left_(matrix()), delta_(matrix()), error_(matrix()) {}

  // (I - S / 2)^-1 S, and one step towards a unitary matrix.
  void operator()(const double* core, double* delta) override {
    embed_skew(core, &delta_);
    const double length = length_of(delta_), scale = length > longest ? longest / length : 1;
    for (std::size_t i = 0; i < delta_.size(); ++i) {
      delta_[i] *= scale;
      left_[i] = -delta_[i] / 2;
    }
    add_to_diagonal(1, &left_);
    solve(&left_, &delta_);
    transpose(delta_, &left_);
    multiply(left_, delta_, &error_);
    for (std::size_t i = 0; i < delta_.size(); ++i) error_[i] += delta_[i] + left_[i];
    multiply(delta_, error_, &left_);
    for (std::size_t i = 0; i < delta_.size(); ++i) delta_[i] -= (error_[i] + left_[i]) / 2;
    extract(delta_, delta);
  }

 private:
  static constexpr double longest = 1e8;
  Small left_, delta_, error_;
};

class Polar final : public Retraction {
 public:
  Polar(Index r, Index parts)
      : Retraction(r, parts), delta_(matrix()), y_(matrix()), left_(matrix()), other_(matrix()) {}

  void operator()(const double* core, double* delta) override {
    embed(core, &delta_);
    // Makes an exactly singular I + K invertible, below the rounding of the rest.
    add_to_diagonal(std::numeric_limits<double>::epsilon() * (1 + length_of(delta_)), &delta_);
    for (int i = 0; i < most_iterations; ++i)
      if (is_last_iteration()) break;
    extract(delta_, delta);
  }

 private:
  static constexpr int most_iterations = 10;

  // Y and its inverse adjoint are I + delta and I + other; never formed, to keep small digits.
  bool is_last_iteration() {
    y_ = delta_;
    add_to_diagonal(1, &y_);
    transpose(y_, &left_);
    transpose(delta_, &other_);
    for (double& entry : other_) entry = -entry;
    solve(&left_, &other_);
    left_ = other_;
    add_to_diagonal(1, &left_);
    const double gamma = std::sqrt(norm_of(left_) / norm_of(y_));
    left_ = delta_;
    for (std::size_t i = 0; i < delta_.size(); ++i)
      delta_[i] = (delta_[i] * gamma + other_[i] / gamma) / 2;
    add_to_diagonal((gamma - 1) * (gamma - 1) / gamma / 2, &delta_);
    for (std::size_t i = 0; i < delta_.size(); ++i) left_[i] -= delta_[i];
    // What is left is half the square of the change.
    const double change = norm_of(left_);
    return change * change <= 1e-17 * norm_of(delta_);
  }

  Small delta_, y_, left_, other_;
};

inline std::unique_ptr<Retraction> retraction(Index kind, Index r, Index parts) {
  if (kind == 0) return std::make_unique<Exponential>(r, parts);
  if (kind == 1) return std::make_unique<Cayley>(r, parts);
  return std::make_unique<Polar>(r, parts);
}

}  // namespace
