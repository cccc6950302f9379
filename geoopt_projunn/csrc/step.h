// A whole step with one matrix after the other, each while it is in the cache.

#pragma once

#include <vector>

#include "exponential.h"
#include "sketches.h"
#include "turn.h"

namespace {

template <typename T>
class Stepper {
 public:
  Stepper(Index n, Index parts, Index k, bool is_lsi, Index sweep, Index threads)
      : is_lsi_(is_lsi),
        sketcher_(n, parts, k, threads),
        exponential_(2 * k, parts),
        turner_(n, parts, 2 * k, sweep, threads),
        wide_(2 * k * parts * n),
        rows_(wide_.size()),
        core_(4 * k * k * parts),
        delta_(core_.size()) {}

  // Turn x along d by `length`; return whether the step was finite and taken.
  bool operator()(View<T> x, View<const T> d, Index counter, double length) {
    const Index known =
        sketcher_.sketch(is_lsi_, {x.data, x.transposed}, d, counter, wide_.data(), core_.data());
    for (double& entry : core_) entry *= length;
    exponential_(core_.data(), delta_.data());
    std::copy(wide_.begin(), wide_.end(), rows_.begin());
    return turner_(x, rows_.data(), delta_.data(), counter, known, sketcher_.known_products());
  }

 private:
  bool is_lsi_;
  Sketcher<T> sketcher_;
  Exponential exponential_;
  Turner<T> turner_;
  std::vector<double> wide_;
  std::vector<T> rows_;
  std::vector<double> core_, delta_;
};

}  // namespace
