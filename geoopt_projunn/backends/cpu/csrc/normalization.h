// The normalizations of geoopt_projunn.normalization, of one core after the other.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "small.h"

namespace {

// What normalizations are called; none is last, so that the others may be told by their number.
enum : Index { angle_normalization, spectral_normalization, no_normalization };

class Normalization final : public Retraction {
 public:
  Normalization(Index kind, Index r, Index parts, double floor)
      : Retraction(r, parts),
        kind_(kind),
        floor_(floor),
        s_(matrix()),
        power_(matrix()),
        product_(matrix()) {}

  // Of the step that follows: its length in radians, and the norm of what its core came from.
  void prepare(double length, double seen) {
    length_ = length;
    seen_ = seen;
  }

  // The generator of the step, which may take the place of the core.
  void operator()(const double* core, double* generator) override {
    embed_skew(core, &s_);
    double largest = 0;
    for (double entry : s_) {
      if (!std::isfinite(entry)) {
        std::fill_n(generator, parts_ * r_ * r_, std::numeric_limits<double>::quiet_NaN());
        return;
      }
      largest = std::max(largest, std::abs(entry));
    }
    divide(largest);
    const double norm = length_of(s_);
    if (largest * norm <= floor_ * seen_) {
      std::fill_n(generator, parts_ * r_ * r_, 0.0);
      return;
    }
    divide(norm);
    kind_ == angle_normalization ? divide(1 / std::sqrt(static_cast<double>(r_))) : equalize();
    const double reach = furthest();
    const double length = reach > pi ? length_ * (pi / reach) : length_;
    for (double& entry : s_) entry *= length;
    extract(s_, generator);
  }

 private:
  static constexpr double pi = 3.14159265358979323846;
  // Explained in geoopt_projunn.normalization.
  static constexpr int squarings = 8, few_squarings = 3, newton_schulz_steps = 8;

  void divide(double by) {
    for (double& entry : s_) entry = by == 0 ? 0 : entry / by;
  }

  void equalize() {
    divide(spectral_bound(few_squarings));
    for (int i = 0; i < newton_schulz_steps; ++i) {
      multiply(s_, s_, &power_);
      multiply(s_, power_, &product_);
      for (std::size_t j = 0; j < s_.size(); ++j) s_[j] = 1.5 * s_[j] + 0.5 * product_[j];
    }
  }

  // How far a plane would turn.
  double furthest() {
    const double length = std::abs(length_);
    if (kind_ == spectral_normalization) return length;
    const Index planes = parts_ == 2 ? r_ : r_ / 2;
    return length * std::sqrt(static_cast<double>(planes)) > pi ? length * spectral_bound(squarings)
                                                                : 0;
  }

  double spectral_bound(int times) {
    double bound = length_of(s_), share = 1;
    power_ = s_;
    for (double& entry : power_) entry /= bound;
    for (int i = 0; i < times; ++i) {
      multiply(power_, power_, &product_);
      const double norm = length_of(product_);
      share /= 2;
      bound *= std::pow(norm, share);
      for (std::size_t j = 0; j < power_.size(); ++j) power_[j] = product_[j] / norm;
    }
    return bound;
  }

  Index kind_;
  double floor_, length_ = 0, seen_ = 0;
  Small s_, power_, product_;
};

}  // namespace
