// The sketches of geoopt_projunn.sketches, of one matrix after the other.

#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <vector>

#include "basis.h"
#include "buffers.h"
#include "columns.h"
#include "hashing.h"
#include "interleaved.h"
#include "products.h"

namespace {

// Explained in geoopt_projunn.sketches.
constexpr Index in_turn = 4;
constexpr double anywhere = 0.3;

// What sketches are called.
enum : Index { tangent_sketch, lsi_sketch, column_sketch };

// Of points and directions (n, p), n >= p. Basis rows, (2k, n), and cores, (2k, 2k), are in double
// precision, other rows in that of x.
template <typename T>
class Sketcher {
 public:
  Sketcher(Index n, Index p, Index parts, Index k, Index threads)
      : n_(n),
        p_(p),
        parts_(parts),
        k_(k),
        width_(parts * n),
        row_(parts * p),
        threads_(threads),
        number_(k == 1 ? n : p),
        length_(k == 1 ? p : n),
        count_(std::min(in_turn * k, number_)),
        some_(parts * k * count_),
        few_(count_ * width_),
        mixed_(k * width_),
        along_(k * width_),
        moved_(k * width_),
        back_(k * width_),
        last_(k * width_),
        wide_(k * width_),
        other_(k * width_),
        dots_(parts * 2 * k * k),
        more_(dots_.size()),
        columns_(n, p, parts, threads),
        basis_(width_, parts, 2 * k),
        sides_(n, p, parts, threads) {}

  // Sketch the step from x along d. Return how many of the products of the rows with x are known
  // from it.
  Index sketch(Index kind, View<const T> x, View<const T> d, Index counter, double* rows,
               double* core) {
    if (kind == tangent_sketch)
      tangent(x, d, counter, rows, core);
    else if (kind == lsi_sketch)
      lsi(x, d, counter, rows, core);
    else
      column(x, d, counter, rows, core);
    return kind == tangent_sketch ? k_ : 0;
  }
  const T* known_products() const { return along_.data(); }
  // The norm of what the last core is a small difference of where d is nearly normal.
  double seen() const { return seen_; }

  void tangent(View<const T> x, View<const T> d, Index counter, double* rows, double* core) {
    draw_mixed(d, counter);
    basis_.clear(width_);
    if (k_ == 1) {
      sides_.times_adjoint(x, k_, mixed_.data(), last_.data());
      sides_(d, k_, k_, last_.data(), mixed_.data(), moved_.data(), back_.data());
      seen_ = length_of(back_.data(), k_ * width_);
      sides_.times_adjoint(x, k_, moved_.data(), last_.data());
      for (std::size_t j = 0; j < back_.size(); ++j) back_[j] -= last_[j];
    } else {
      products(x, d, mixed_.data());
      seen_ = length_of(back_.data(), k_ * width_);
      subtract_products(x);
    }
    add_to_basis(back_);
    narrow_basis(&mixed_);
    generator_rows(x, d, mixed_.data());
    std::copy(back_.begin(), back_.end(), other_.begin());
    add_to_basis(back_);
    basis_.inner_products(other_.data(), k_, dots_.data());

    const Index r = 2 * k_;
    std::fill_n(core, parts_ * r * r, 0.0);
    for (Index i = 0; i < r; ++i)
      for (Index j = 0; j < k_; ++j) {
        std::complex<double> entry = product(dots_, i, j);
        // Within the span of the first k rows only the skew part: rounding is no generator.
        if (i < k_) entry = 0.5 * (entry - std::conj(product(dots_, j, i)));
        set(core, i, j, entry);
        set(core, j, i, -std::conj(entry));
      }
    write_basis(rows);
  }

  void lsi(View<const T> x, View<const T> d, Index counter, double* rows, double* core) {
    const double* const uniform = draw(counter, k_ * n_);
    for (Index i = 0; i < k_ * n_; ++i) set_real(&mixed_, i, static_cast<T>(uniform[i]));
    sides_.times(d, k_, mixed_.data(), back_.data());
    basis_.clear(row_);
    add_to_basis(back_);
    narrow_basis(&mixed_);
    sides_.times_adjoint(d, k_, mixed_.data(), back_.data());
    ambient(x, rows, core);
  }

  void column(View<const T> x, View<const T> d, Index counter, double* rows, double* core) {
    const std::vector<Index>& drawn = columns_(d, k_, draw(counter, p_));
    for (Index row = 0; row < k_; ++row) read_adjoint_column(d, drawn[row], &back_[row * width_]);
    basis_.clear(width_);
    add_to_basis(back_);
    narrow_basis(&back_);
    sides_.times(d, k_, back_.data(), mixed_.data());
    ambient(x, rows, core);
  }

 private:
  // Express the step along a b^H, the rows a^H in back_ and b^H in mixed_.
  void ambient(View<const T> x, double* rows, double* core) {
    sides_.times_adjoint(x, k_, mixed_.data(), last_.data());
    basis_.clear(width_);
    add_to_basis(back_);
    add_to_basis(last_);
    std::copy(back_.begin(), back_.end(), other_.begin());
    basis_.inner_products(other_.data(), k_, dots_.data());
    std::copy(last_.begin(), last_.end(), other_.begin());
    basis_.inner_products(other_.data(), k_, more_.data());

    const Index r = 2 * k_;
    for (Index i = 0; i < r; ++i)
      for (Index j = 0; j < r; ++j) {
        std::complex<double> entry = 0;
        for (Index l = 0; l < k_; ++l)
          entry += product(dots_, i, l) * std::conj(product(more_, j, l));
        set(core, i, j, entry);
      }
    seen_ = length_of(core, parts_ * r * r);
    write_basis(rows);
  }

  // A column, conjugated: a row of the adjoint.
  void read_adjoint_column(View<const T> d, Index column, T* to) const {
    if (d.transposed)
      read(d, column * width_, width_, to);
    else
      for (Index i = 0; i < n_; ++i) read(d, i * row_ + parts_ * column, parts_, to + parts_ * i);
    if (parts_ == 2) conjugate(to, n_);
  }

  // back_ = (rows x d^H - rows d x^H) / 2
  void generator_rows(View<const T> x, View<const T> d, const T* rows) {
    products(x, d, rows);
    subtract_products(x);
  }
  // back_ = rows x d^H, moved_ = rows d
  void products(View<const T> x, View<const T> d, const T* rows) {
    sides_.times(x, k_, rows, along_.data());
    sides_(d, k_, k_, rows, along_.data(), moved_.data(), back_.data());
  }
  void subtract_products(View<const T> x) {
    sides_.times_adjoint(x, k_, moved_.data(), last_.data());
    for (std::size_t j = 0; j < back_.size(); ++j) back_[j] = (back_[j] - last_[j]) / 2;
  }

  // mixed_: rows of d if k = 1, or adjoint columns, combined, at unit length, and a random share.
  void draw_mixed(View<const T> d, Index counter) {
    const Index each = count_ + length_, width = parts_ * length_;
    const double* const uniform = draw(counter, k_ * each);
    const bool by_rows = (k_ == 1) != d.transposed;
    for (Index row = 0; row < k_; ++row)
      for (Index j = 0; j < count_; ++j) {
        const T value = static_cast<T>(uniform[row * each + j]);
        if (by_rows)
          some_[j * k_ + row] = value;
        else
          set_real(&some_, row * count_ + j, value);
      }
    const Index first = first_in_turn(counter, count_, number_);
    by_rows ? mix_rows(d, first) : mix_adjoint_columns(d, first);
    if (d.transposed && parts_ == 2) conjugate(mixed_.data(), k_ * length_);
    for (Index row = 0; row < k_; ++row) {
      T* const mixed = mixed_.data() + row * width;
      std::copy_n(mixed, width, wide_.begin());
      const double norm = safe_norm(wide_.data(), width), by = norm == 0 ? 0 : 1 / norm;
      const double* const noise = uniform + row * each + count_;
      // Its sign is that of row · noise, which flips when the row does.
      double toward = 0;
      for (Index j = 0; j < length_; ++j) toward += wide_[parts_ * j] * noise[j];
      if (parts_ == 2)
        for (Index j = 0; j < length_; ++j) toward += wide_[2 * j + 1] * noise[(j + 1) % length_];
      const double share = std::copysign(anywhere * std::sqrt(3.0 / length_), toward);
      for (Index j = 0; j < width; ++j) mixed[j] = static_cast<T>(wide_[j] * by);
      for (Index j = 0; j < length_; ++j) mixed[parts_ * j] += static_cast<T>(share * noise[j]);
    }
  }

  // mixed_ = some few, few the next rows of the stored matrix, from the first on again after the
  // last.
  void mix_rows(View<const T> d, Index first) {
    const Index width = parts_ * length_;
    for (Index j = 0; j < count_; ++j)
      read(d, (first + j) % number_ * width, width, few_.data() + j * width);
    std::fill(mixed_.begin(), mixed_.end(), T(0));
    update_of(mixed_.data(), 0, k_, k_, width, count_, some_.data(), few_.data());
  }

  // mixed_ = some few^H, few its next columns.
  void mix_adjoint_columns(View<const T> d, Index first) {
    const Index before_end = std::min(count_, number_ - first) * parts_, taken = count_ * parts_;
    for (Index i = 0; i < length_; ++i) {
      const Index begin = i * parts_ * number_;
      read(d, begin + first * parts_, before_end, few_.data() + i * taken);
      read(d, begin, taken - before_end, few_.data() + i * taken + before_end);
    }
    sides_of_one(Shape{length_, count_, 0, k_, threads_, parts_ == 2}, Rows<T>{few_.data()},
                 static_cast<const T*>(nullptr), some_.data(), static_cast<T*>(nullptr),
                 mixed_.data(), &scratch_);
  }

  void add_to_basis(const Buffer<T>& rows) {
    const Index width = basis_.width();
    for (Index row = 0; row < k_; ++row) {
      std::copy_n(rows.data() + row * width, width, wide_.data());
      basis_.add(wide_.data());
    }
  }
  void narrow_basis(Buffer<T>* rows) const {
    const Index width = basis_.width();
    for (Index row = 0; row < k_; ++row)
      std::copy_n(basis_.row(row), width, rows->data() + row * width);
  }
  void write_basis(double* rows) const {
    for (Index row = 0; row < 2 * k_; ++row)
      std::copy_n(basis_.row(row), width_, rows + row * width_);
  }

  const double* draw(Index counter, Index count) {
    uniform_.resize(count);
    draw_uniform(counter, count, uniform_.data());
    return uniform_.data();
  }
  void set_real(Buffer<T>* rows, Index entry, T value) const {
    (*rows)[parts_ * entry] = value;
    if (parts_ == 2) (*rows)[2 * entry + 1] = T(0);
  }
  // Basis row i times the adjoint of row j.
  std::complex<double> product(const Buffer<double>& dots, Index i, Index j) const {
    const double* entry = dots.data() + parts_ * (j * 2 * k_ + i);
    return {entry[0], parts_ == 2 ? -entry[1] : 0.0};
  }
  void set(double* core, Index i, Index j, std::complex<double> value) const {
    double* entry = core + parts_ * (i * 2 * k_ + j);
    entry[0] = value.real();
    if (parts_ == 2) entry[1] = value.imag();
  }

  // Real numbers in a row of length n, and in one of length p.
  Index n_, p_, parts_, k_, width_, row_, threads_;
  // Rows of a direction for k = 1, else columns: how many there are, their length, and how many of
  // them test vectors are made of.
  Index number_, length_, count_;
  Buffer<T> some_, few_, mixed_, along_, moved_, back_, last_;
  Buffer<double> wide_, other_, dots_, more_, uniform_;
  ColumnDraw<T> columns_;
  double seen_ = 0;
  Basis basis_;
  Sides<T> sides_;
  Scratch<T> scratch_;
};

}  // namespace
