// Which columns the column sketch takes.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "basis.h"
#include "buffers.h"
#include "products.h"

namespace {

// Draws columns of directions (n, p).
template <typename T>
class ColumnDraw {
 public:
  ColumnDraw(Index n, Index p, Index parts, Index threads)
      : n_(n), p_(p), parts_(parts), width_(parts * n), row_(parts * p), threads_(threads) {}

  // Draw k columns without replacement, with probabilities proportional to their squared norms, by
  // p uniform numbers. They come first in what is returned.
  const std::vector<Index>& operator()(View<const T> d, Index k, const double* uniform) {
    keys_.resize(p_);
    drawn_.resize(p_);
    std::iota(drawn_.begin(), drawn_.end(), Index(0));
    in_parts(p_, is_large() ? threads_ : 1, [&](Index first, Index last) {
      d.transposed ? square_rows(d, first, last) : square_columns(d, first, last);
    });
    for (Index j = 0; j < p_; ++j) {
      keys_[j] = std::log(keys_[j]) - std::log(-std::log((uniform[j] + 1) / 2));
      // First, for what is not finite has to show.
      if (std::isnan(keys_[j])) keys_[j] = std::numeric_limits<double>::infinity();
    }
    std::partial_sort(drawn_.begin(), drawn_.begin() + k, drawn_.end(), [&](Index i, Index j) {
      return keys_[i] > keys_[j] || (keys_[i] == keys_[j] && i < j);
    });
    return drawn_;
  }

 private:
  bool is_large() const { return n_ * row_ * static_cast<Index>(sizeof(T)) > bytes_for_a_thread; }

  // keys_: squared norms of some rows, or columns, of the stored matrix. The columns are those of
  // one thread, so that the threads change no bit.
  void square_rows(View<const T> d, Index first, Index last) {
    Buffer<T> row(width_);
    for (Index i = first; i < last; ++i) {
      read(d, i * width_, width_, row.data());
      keys_[i] = square_of(row.data(), width_);
    }
  }
  void square_columns(View<const T> d, Index first, Index last) {
    Buffer<T> part(parts_ * (last - first));
    std::fill(keys_.begin() + first, keys_.begin() + last, 0.0);
    for (Index i = 0; i < n_; ++i) {
      read(d, i * row_ + parts_ * first, parts_ * (last - first), part.data());
      for (Index j = 0; j < last - first; ++j)
        for (Index l = 0; l < parts_; ++l) {
          const double value = part[parts_ * j + l];
          keys_[first + j] += value * value;
        }
    }
  }

  Index n_, p_, parts_;
  // Real numbers in a column, and in a row.
  Index width_, row_;
  Index threads_;
  Buffer<double> keys_;
  std::vector<Index> drawn_;
};

}  // namespace
