// What an optimizer remembers of a matrix, and the direction that it makes of it.

#pragma once

#include <atomic>

#include "products.h"

namespace {

// Of one matrix. The direction is made entry by entry wherever it is read, so that it needs no
// memory; what it is made of changes only when the step has been taken.
template <typename T>
class Memory : public Maker<T> {
 public:
  void make(Index begin, Index count, T* to) const final {
    if (!direction(begin, count, to)) finite_.store(false, std::memory_order_relaxed);
  }
  // Whether all that was made, and what will be remembered, is.
  bool is_finite() const { return finite_.load(std::memory_order_relaxed); }
  virtual void advance() = 0;

 protected:
  virtual bool direction(Index begin, Index count, T* to) const = 0;

 private:
  mutable std::atomic<bool> finite_{true};
};

}  // namespace
