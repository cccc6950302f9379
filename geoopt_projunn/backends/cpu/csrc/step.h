// A whole step with one matrix after the other, each while it is in the cache.

#pragma once

#include <memory>

#include "buffers.h"
#include "memory.h"
#include "normalization.h"
#include "retractions.h"
#include "sketches.h"
#include "turn.h"

namespace {

// Of a direction: below, it is made once and stays in a core's own cache.
constexpr Index made_whole_bytes = 256 * 1024;

template <typename T>
class Stepper {
 public:
  Stepper(Index n, Index p, Index parts, Index k, Index sketch_kind, Index retraction_kind,
          Index sweep, Index threads, Index normalization_kind, double floor)
      : numbers_(parts * n * p),
        sketch_kind_(sketch_kind),
        sketcher_(n, p, parts, k, threads),
        retraction_(retraction(retraction_kind, 2 * k, parts)),
        normalizes_(normalization_kind != no_normalization),
        normalization_(normalization_kind, 2 * k, parts, floor),
        turner_(n, p, parts, 2 * k, sweep, threads),
        wide_(2 * k * parts * n),
        rows_(wide_.size()),
        core_(4 * k * k * parts),
        delta_(core_.size()) {}

  // Turn x along d by `length`; return whether the step was finite and taken.
  bool operator()(View<T> x, View<const T> d, Index counter, double length) {
    return turn(x, sketch(x, d, counter), counter, length);
  }

  // The same along what a memory makes, which advances if the step was taken.
  bool operator()(View<T> x, Memory<T>* memory, bool transposed, Index counter, double length) {
    View<const T> d{nullptr, transposed, memory};
    if (numbers_ * static_cast<Index>(sizeof(T)) <= made_whole_bytes) {
      made_.resize(numbers_);
      memory->make(0, numbers_, made_.data());
      d = {made_.data(), transposed};
    }
    const Index known = sketch(x, d, counter);
    // The sketch has read all of it.
    if (!memory->is_finite() || !turn(x, known, counter, length)) return false;
    memory->advance();
    return true;
  }

 private:
  // Return how many products of the rows with x are known.
  Index sketch(View<T> x, View<const T> d, Index counter) {
    return sketcher_.sketch(sketch_kind_, {x.data, x.transposed}, d, counter, wide_.data(),
                            core_.data());
  }

  bool turn(View<T> x, Index known, Index counter, double length) {
    if (normalizes_) {
      normalization_.prepare(length, sketcher_.seen());
      normalization_(core_.data(), core_.data());
    } else {
      for (double& entry : core_) entry *= length;
    }
    (*retraction_)(core_.data(), delta_.data());
    std::copy(wide_.begin(), wide_.end(), rows_.begin());
    return turner_(x, rows_.data(), delta_.data(), counter, known, sketcher_.known_products());
  }

  Index numbers_;
  Index sketch_kind_;
  Sketcher<T> sketcher_;
  std::unique_ptr<Retraction> retraction_;
  bool normalizes_;
  Normalization normalization_;
  Turner<T> turner_;
  Buffer<double> wide_;
  Buffer<T> rows_, made_;
  Buffer<double> core_, delta_;
};

}  // namespace
