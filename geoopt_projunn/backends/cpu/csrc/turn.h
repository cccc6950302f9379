// A rotation of a small subspace, and the sweep that keeps rounding from adding up: what
// geoopt_projunn.rotation and geoopt_projunn.drift do, in two passes over the matrix.

#pragma once

#include <algorithm>
#include <cmath>

#include "basis.h"
#include "buffers.h"
#include "hashing.h"
#include "interleaved.h"
#include "products.h"

namespace {

// Explained in geoopt_projunn.drift.
constexpr double converges = 0.1;

// Whether all entries are. None of a rotation exceeds 2: their sum cannot overflow.
template <typename U>
bool is_finite(const U* entries, Index count) {
  constexpr Index lanes = 8;
  double total[lanes] = {};
  Index i = 0;
  for (; i + lanes <= count; i += lanes)
    for (Index lane = 0; lane < lanes; ++lane)
      total[lane] += static_cast<double>(entries[i + lane]);
  for (; i < count; ++i) total[0] += static_cast<double>(entries[i]);
  for (Index lane = 1; lane < lanes; ++lane) total[0] += total[lane];
  return std::isfinite(total[0]);
}

// About what stays of a matrix in the innermost cache, in multiples of the rows of a large tile.
constexpr Index updated_bytes = 16 * 1024, updated_rows = 8;

template <typename T>
class Turner {
 public:
  Turner(Index n, Index p, Index parts, Index r, Index count, Index threads)
      : n_(n),
        p_(p),
        parts_(parts),
        r_(r),
        count_(count),
        width_(parts * n),
        row_(parts * p),
        threads_(threads),
        left_((r + count) * width_),
        product_((r + count) * row_),
        turned_(r * row_),
        real_left_(parts * r * n),
        real_factor_(parts * r * width_),
        right_(parts * count * row_),
        dots_(parts * count * n),
        mending_(count * width_),
        mended_(count * width_),
        factor_(parts * r * row_),
        by_(parts * r * r),
        wide_(r * row_),
        within_(parts * count * count),
        sides_(n, p, parts, threads) {}

  // x (n, p) += rows^H delta rows x, then the columns whose turn it is against all others. Return
  // whether the rotation is finite; x stays as it is where not. The products of the first rows with
  // x may be known.
  bool operator()(View<T> x, const T* rows, const double* delta, Index counter, Index known = 0,
                  const T* known_products = nullptr) {
    if (!is_finite(rows, r_ * width_) || !is_finite(delta, parts_ * r_ * r_)) return false;
    const Index first = first_in_turn(counter, count_, p_), others = r_ - known;
    T* const own = left_.data() + others * width_;
    std::copy_n(rows + known * width_, others * width_, left_.begin());
    read_columns(x, first, own);
    std::copy_n(known_products, known * row_, product_.begin());
    sides_.times({x.data, x.transposed}, others + count_, left_.data(),
                 product_.data() + known * row_);
    turn_rows(delta);
    // The rotation, unitary to the rounding of a double, leaves x^H x - I as it is.
    T* const error = product_.data() + r_ * row_;
    const bool near = find_error(error, first);
    x.transposed ? update_transpose(x, rows, error) : update(x.data, rows, error);
    if (near && count_ > 0) {
      read_columns(x, first, own);
      mend(own);
      write_columns(x, first, own);
    }
    return true;
  }

 private:
  Index column(Index first, Index j) const { return (first + j) % p_; }

  // The adjoint columns whose turn it is, as rows.
  void read_columns(View<T> x, Index first, T* to) const {
    const Index step = x.transposed ? parts_ : row_;
    for (Index j = 0; j < count_; ++j)
      copy_entries(column(x, first, j), step, to + j * width_, parts_, n_, parts_);
    if (parts_ == 2) conjugate(to, count_ * n_);
  }
  void write_columns(View<T> x, Index first, T* from) const {
    const Index step = x.transposed ? parts_ : row_;
    if (parts_ == 2) conjugate(from, count_ * n_);
    for (Index j = 0; j < count_; ++j)
      copy_entries(from + j * width_, parts_, column(x, first, j), step, n_, parts_);
  }
  T* column(View<T> x, Index first, Index j) const {
    return x.data + column(first, j) * (x.transposed ? width_ : parts_);
  }

  // turned_ = delta times the first r rows of product_
  void turn_rows(const double* delta) {
    for (Index i = 0; i < r_; ++i) {
      double* to = factor_.data() + parts_ * i * row_;
      std::copy_n(product_.data() + i * row_, row_, to);
      if (parts_ == 2) times_i(to, p_, 1.0, to + row_);
      for (Index j = 0; j < r_; ++j)
        for (Index part = 0; part < parts_; ++part)
          by_[(parts_ * j + part) * r_ + i] = delta[parts_ * (i * r_ + j) + part];
    }
    std::fill(wide_.begin(), wide_.end(), 0.0);
    update_of(wide_.data(), 0, r_, r_, row_, parts_ * r_, by_.data(), factor_.data());
    std::copy(wide_.begin(), wide_.end(), turned_.begin());
  }

  // Take the identity from the products of the columns with x, and say whether little is left.
  bool find_error(T* error, Index first) {
    for (Index j = 0; j < count_; ++j) {
      error[j * row_ + column(first, j) * parts_] -= 1;
      for (Index l = 0; l < count_; ++l)
        std::copy_n(error + j * row_ + column(first, l) * parts_, parts_,
                    within_.data() + parts_ * (j * count_ + l));
    }
    return square_of(error, count_ * row_) < converges * converges;
  }

  // x += rows^H turned_, and mending_ = error x^H of the result.
  void update(T* x, const T* rows, const T* error) {
    const Index u = parts_ * r_, e = parts_ * count_;
    const T *by = rows, *factor = turned_.data(), *right = error;
    if (parts_ == 2) {
      real_from_left(rows, r_, n_, real_left_.data());
      real_from_right(factor, r_, p_, real_factor_.data());
      real_from_right(error, count_, p_, right_.data());
      by = real_left_.data();
      factor = real_factor_.data();
      right = right_.data();
    }
    const Index bytes = row_ * static_cast<Index>(sizeof(T));
    const Index step = updated_rows * std::max<Index>(1, updated_bytes / bytes / updated_rows);
    in_parts(chunks_of(n_), threads_, [&](Index chunk, Index last_chunk) {
      for (; chunk < last_chunk; ++chunk) {
        const Index end = std::min(n_, (chunk + 1) * chunk_rows);
        for (Index begin = chunk * chunk_rows; begin < end; begin += step) {
          const Index last = std::min(end, begin + step);
          update_of(x, begin, last, n_, row_, u, by, factor);
          sides_of(x, begin, last, n_, row_, 0, e, static_cast<const T*>(nullptr), right,
                   static_cast<T*>(nullptr), parts_ == 2 ? dots_.data() : mending_.data());
        }
      }
    });
    if (parts_ == 2)
      for (Index row = 0; row < count_; ++row)
        join(&dots_[2 * row * n_], &dots_[(2 * row + 1) * n_], n_, &mending_[row * width_]);
  }

  // The same of the transpose t: t += conj(turned_)^H conj(rows).
  void update_transpose(View<T> x, const T* rows, const T* error) {
    std::copy_n(rows, r_ * width_, real_factor_.begin());
    if (parts_ == 2) {
      conjugate(real_factor_.data(), r_ * n_);
      conjugate(turned_.data(), r_ * p_);
    }
    add_product_to_one(Shape{p_, n_, r_, 0, threads_, parts_ == 2}, x.data, turned_.data(),
                       real_factor_.data(), &scratch_);
    sides_.times_adjoint({x.data, true}, count_, error, mending_.data());
  }

  // own <- own - error x^H + within own / 2, for adjoint columns.
  void mend(T* own) {
    for (Index j = 0; j < count_ * width_; ++j) mended_[j] = own[j] - mending_[j];
    // within is Hermitian: its conjugate transpose is what it is.
    for (T& entry : within_) entry /= 2;
    add_product_to_one(Shape{count_, n_, count_, 0, 1, parts_ == 2}, mended_.data(), within_.data(),
                       own, &scratch_);
    std::copy(mended_.begin(), mended_.end(), own);
  }

  // Real numbers in a row of length n, and in one of length p.
  Index n_, p_, parts_, r_, count_, width_, row_, threads_;
  Buffer<T> left_, product_, turned_, real_left_, real_factor_, right_, dots_, mending_, mended_;
  Buffer<double> factor_, by_, wide_;
  Buffer<T> within_;
  Sides<T> sides_;
  Scratch<T> scratch_;
};

}  // namespace
