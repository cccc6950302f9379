// Products of a few rows with matrices, and updates by them, reading each matrix once.
//
// BLAS reads a matrix once for each row and each side; where the rows are few, reading is all
// the work. Everything here is real: a complex matrix of m columns is a real one of 2m, a
// complex row two real ones.

#pragma once

#include <algorithm>
#include <type_traits>

#include "buffers.h"
#include "interleaved.h"
#include "passes.h"
#include "threads.h"

namespace {

// One matrix (n, m); l rows from the left, r from the right.
struct Shape {
  Index n, m, l, r, threads;
  bool complex;

  // Real numbers in an entry, and in a row of the matrix.
  Index parts() const { return complex ? 2 : 1; }
  Index width() const { return parts() * m; }
};

// Call work(first, last, threads) for parts of a batch of b matrices of n rows. Of small matrices
// each thread takes some; of large ones all threads take chunks.
template <typename T, typename Work>
void for_each_matrix(Index b, Index n, Index width, Index threads, const Work& work) {
  const Index bytes = b * n * width * static_cast<Index>(sizeof(T));
  const Index useful = std::max<Index>(1, std::min(threads, 1 + bytes / bytes_for_a_thread));
  if (chunks_of(n) > 1) return work(Index(0), b, useful);
  in_parts(b, useful, [&](Index first, Index last) { work(first, last, Index(1)); });
}

// A matrix that is not in memory: its numbers are made when they are read.
template <typename T>
class Maker {
 public:
  virtual ~Maker() = default;
  // Write `count` of the numbers, row by row, from `begin` on.
  virtual void make(Index begin, Index count, T* to) const = 0;
};

// A real matrix, in memory or made.
template <typename T>
struct Rows {
  const T* data;
  const Maker<T>* maker = nullptr;
};

// Of what is made at once: it stays in a core's own cache until it is read.
constexpr Index made_bytes = 64 * 1024;

// What sides_of does, of rows that may have to be made.
template <typename T>
void sides_of_rows(const Rows<T>& a, Index first, Index last, Index n, Index m, Index l, Index r,
                   const T* left, const T* right, T* out_left, T* out_right) {
  if (a.maker == nullptr)
    return sides_of(a.data, first, last, n, m, l, r, left, right, out_left, out_right);
  const Index rows = std::max<Index>(4, made_bytes / static_cast<Index>(sizeof(T)) / m / 4 * 4);
  Buffer<T> made(rows * m);
  for (Index begin = first; begin < last; begin += rows) {
    const Index count = std::min(rows, last - begin);
    a.maker->make(begin * m, count * m, made.data());
    sides_of(made.data(), 0, count, n, m, l, r, l > 0 ? left + begin : left, right, out_left,
             r > 0 ? out_right + begin : out_right);
  }
}

// Rows of one matrix as real ones, and what becomes of them.
template <typename T>
struct Scratch {
  Buffer<T> left, right, products, dots, shares;
};

// out_left (l, m) = left (l, n) @ a; out_right (r, n) = right (r, m) @ a^T, all real.
//
// Chunks are added in their order, so that the threads change no bit.
template <typename T>
void real_sides(Index n, Index m, Index l, Index r, Index threads, const Rows<T>& a, const T* left,
                const T* right, T* out_left, T* out_right, Buffer<T>* shares) {
  const Index size = l * m, chunks = chunks_of(n);
  std::fill_n(out_left, size, T(0));
  if (chunks == 1) return sides_of_rows(a, 0, n, n, m, l, r, left, right, out_left, out_right);
  const Index team = std::min(threads, chunks);
  shares->resize(team * size);
  for (Index begin = 0; begin < chunks; begin += team) {
    const Index count = std::min(team, chunks - begin);
    std::fill_n(shares->begin(), count * size, T(0));
    in_parts(count, team, [&](Index part, Index last_part) {
      for (; part < last_part; ++part) {
        const Index first = (begin + part) * chunk_rows, last = std::min(n, first + chunk_rows);
        sides_of_rows(a, first, last, n, m, l, r, left, right, shares->data() + part * size,
                      out_right);
      }
    });
    for (Index part = 0; part < count; ++part)
      for (Index j = 0; j < size; ++j) out_left[j] += (*shares)[part * size + j];
  }
}

// out_left (l, m) = left (l, n) @ a; out_right (r, n) = right (r, m) @ a^H, for one matrix.
template <typename T>
void sides_of_one(const Shape& s, const Rows<T>& a, const T* left, const T* right, T* out_left,
                  T* out_right, Scratch<T>* scratch) {
  const Index n = s.n, width = s.width();
  if (!s.complex)
    return real_sides(n, width, s.l, s.r, s.threads, a, left, right, out_left, out_right,
                      &scratch->shares);
  scratch->left.resize(2 * s.l * n);
  scratch->products.resize(2 * s.l * width);
  scratch->right.resize(2 * s.r * width);
  scratch->dots.resize(2 * s.r * n);
  real_from_left(left, s.l, n, scratch->left.data());
  real_from_right(right, s.r, s.m, scratch->right.data());
  real_sides(n, width, 2 * s.l, 2 * s.r, s.threads, a, scratch->left.data(), scratch->right.data(),
             scratch->products.data(), scratch->dots.data(), &scratch->shares);
  for (Index row = 0; row < s.l; ++row) {
    const T* product = &scratch->products[2 * row * width];
    add_times_i(product, product + width, s.m, out_left + row * width);
  }
  for (Index row = 0; row < s.r; ++row) {
    const T* dots = &scratch->dots[2 * row * n];
    join(dots, dots + n, n, out_right + 2 * row * n);
  }
}

// a (n, m) += rows^H factor, rows (l, n), factor (l, m), for one matrix.
template <typename T>
void add_product_to_one(const Shape& s, T* a, const T* rows, const T* factor, Scratch<T>* scratch) {
  const Index n = s.n, width = s.width();
  if (s.complex) {
    scratch->left.resize(2 * s.l * n);
    scratch->right.resize(2 * s.l * width);
    real_from_left(rows, s.l, n, scratch->left.data());
    real_from_right(factor, s.l, s.m, scratch->right.data());
    rows = scratch->left.data();
    factor = scratch->right.data();
  }
  in_parts(chunks_of(n), s.threads, [&](Index chunk, Index last_chunk) {
    for (; chunk < last_chunk; ++chunk) {
      const Index first = chunk * chunk_rows, last = std::min(n, first + chunk_rows);
      update_of(a, first, last, n, width, s.parts() * s.l, rows, factor);
    }
  });
}

// A matrix, or one that is stored as its transpose, or one that is made.
template <typename T>
struct View {
  T* data;
  bool transposed;
  const Maker<std::remove_const_t<T>>* maker = nullptr;
};

// Some numbers of the stored matrix.
template <typename T>
void read(View<const T> d, Index begin, Index count, T* to) {
  if (d.maker != nullptr)
    d.maker->make(begin, count, to);
  else
    std::copy_n(d.data + begin, count, to);
}

// left (l, n) @ a and right (r, p) @ a^H for a (n, p), whichever way a is stored.
template <typename T>
class Sides {
 public:
  Sides(Index n, Index p, Index parts, Index threads)
      : n_(n), p_(p), parts_(parts), threads_(threads) {}

  void operator()(View<const T> a, Index l, Index r, const T* left, const T* right, T* out_left,
                  T* out_right) {
    const Rows<T> stored{a.data, a.maker};
    if (!a.transposed) return sides(n_, p_, stored, l, r, left, right, out_left, out_right);
    if (parts_ == 1) return sides(p_, n_, stored, r, l, right, left, out_right, out_left);
    // Of the transpose t, conj(conj(left) t^H) and conj(conj(right) t).
    conjugates_.assign(left, left + l * 2 * n_);
    conjugates_.insert(conjugates_.end(), right, right + r * 2 * p_);
    conjugate(conjugates_.data(), l * n_ + r * p_);
    const T *conj_left = conjugates_.data(), *conj_right = conj_left + l * 2 * n_;
    sides(p_, n_, stored, r, l, conj_right, conj_left, out_right, out_left);
    conjugate(out_left, l * p_);
    conjugate(out_right, r * n_);
  }

  void times(View<const T> a, Index count, const T* rows, T* out) {
    (*this)(a, count, 0, rows, nullptr, out, nullptr);
  }
  void times_adjoint(View<const T> a, Index count, const T* rows, T* out) {
    (*this)(a, 0, count, nullptr, rows, nullptr, out);
  }

 private:
  void sides(Index n, Index m, const Rows<T>& a, Index l, Index r, const T* left, const T* right,
             T* out_left, T* out_right) {
    sides_of_one(Shape{n, m, l, r, threads_, parts_ == 2}, a, left, right, out_left, out_right,
                 &scratch_);
  }

  Index n_, p_, parts_, threads_;
  Buffer<T> conjugates_;
  Scratch<T> scratch_;
};

}  // namespace
