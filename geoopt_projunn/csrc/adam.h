// The moments of Adam and the direction they make, in one pass over all of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "elementwise.h"

namespace {

struct AdamNumbers {
  double beta1, beta2, epsilon, correction1, correction2;
};

// Exact where the share is 1, and where it is 0.
template <typename T>
INLINE T mixed(T old, T fresh, T share) {
  return share < T(0.5) ? old + share * (fresh - old) : fresh - (T(1) - share) * (fresh - old);
}

// |g|^2 of `count` entries.
template <int parts, typename T>
INLINE void squares(const T* g, Index count, T* to) {
  for (Index i = 0; i < count; ++i)
    to[i] = parts == 1 ? g[i] * g[i] : g[2 * i] * g[2 * i] + g[2 * i + 1] * g[2 * i + 1];
}

template <int parts, typename T>
INLINE double sum_of_squares(const T* g, Index count) {
  double total = 0;
  T square[block_entries];
  for (Index begin = 0; begin < count; begin += block_entries) {
    const Index length = std::min(block_entries, count - begin);
    squares<parts>(g + parts * begin, length, square);
    double lane[8] = {};
    for (Index i = 0; i < length; ++i) lane[i % 8] += static_cast<double>(square[i]);
    for (double one : lane) total += one;
  }
  return total;
}

// The direction of `count` entries; with one second moment for each entry, or `of_all` as the
// divisor of all.
template <int parts, typename T>
INLINE bool direction(const T* g, const T* first, const T* second, const T* most, double of_all,
                      const AdamNumbers& a, Index count, T* out) {
  const T share1 = static_cast<T>(1 - a.beta1), share2 = static_cast<T>(1 - a.beta2);
  const T epsilon = static_cast<T>(a.epsilon), correction1 = static_cast<T>(a.correction1),
          correction2 = static_cast<T>(a.correction2);
  bool finite = true;
  T moment[block_entries], divisor[block_entries];
  for (Index begin = 0; begin < count; begin += block_entries) {
    const Index length = std::min(block_entries, count - begin);
    std::fill_n(divisor, length, static_cast<T>(of_all));
    if (second != nullptr) {
      squares<parts>(g + parts * begin, length, moment);
      for (Index i = 0; i < length; ++i) moment[i] = mixed(second[begin + i], moment[i], share2);
      // Before the largest so far is taken, which hides what is not a number.
      finite &= all_finite(moment, length);
      if (most != nullptr)
        for (Index i = 0; i < length; ++i) moment[i] = std::max(moment[i], most[begin + i]);
      for (Index i = 0; i < length; ++i)
        divisor[i] = (std::sqrt(moment[i] / correction2) + epsilon) * correction1;
    }
    T* const to = out + parts * begin;
    for (Index i = 0; i < parts * length; ++i)
      to[i] = mixed(first[parts * begin + i], g[parts * begin + i], share1);
    finite &= all_finite(to, parts * length);
    for (Index i = 0; i < length; ++i)
      for (int part = 0; part < parts; ++part) to[parts * i + part] /= divisor[i];
  }
  return finite;
}

// The next moments of `count` entries, in place.
template <int parts, typename T>
INLINE void advance(const T* g, T* first, T* second, T* most, const AdamNumbers& a, Index count) {
  const T share1 = static_cast<T>(1 - a.beta1), share2 = static_cast<T>(1 - a.beta2);
  T square[block_entries];
  for (Index begin = 0; begin < count; begin += block_entries) {
    const Index length = std::min(block_entries, count - begin);
    for (Index i = parts * begin; i < parts * (begin + length); ++i)
      first[i] = mixed(first[i], g[i], share1);
    if (second == nullptr) continue;
    squares<parts>(g + parts * begin, length, square);
    for (Index i = 0; i < length; ++i)
      second[begin + i] = mixed(second[begin + i], square[i], share2);
    if (most != nullptr)
      for (Index i = begin; i < begin + length; ++i) most[i] = std::max(most[i], second[i]);
  }
}

#define FOR_TYPE(T)                                                                             \
  FOR_EACH_CPU double sum_of_squares_of(const T* g, Index parts, Index count) {                 \
    return parts == 1 ? sum_of_squares<1>(g, count) : sum_of_squares<2>(g, count);              \
  }                                                                                             \
  FOR_EACH_CPU bool direction_of(const T* g, const T* first, const T* second, const T* most,    \
                                 double of_all, const AdamNumbers& a, Index parts, Index count, \
                                 T* out) {                                                      \
    return parts == 1 ? direction<1>(g, first, second, most, of_all, a, count, out)             \
                      : direction<2>(g, first, second, most, of_all, a, count, out);            \
  }                                                                                             \
  FOR_EACH_CPU void advance_of(const T* g, T* first, T* second, T* most, const AdamNumbers& a,  \
                               Index parts, Index count) {                                      \
    return parts == 1 ? advance<1>(g, first, second, most, a, count)                            \
                      : advance<2>(g, first, second, most, a, count);                           \
  }
FOR_TYPE(float)
FOR_TYPE(double)
#undef FOR_TYPE

// What Adam keeps of b matrices of `count` entries each. With `is_scalar` the second moment and
// the largest so far are one number for each matrix.
template <typename T>
struct Adam {
  Index b, parts, count, threads;
  bool is_scalar;
  const T* g;
  T *first, *second, *most;
  const Index* taken;
  double beta1, beta2, epsilon;

  // Write the directions, and whether the moments that made them are finite.
  void propose(T* out, bool* finite) const {
    std::vector<double> divisors(b);
    std::fill_n(finite, b, true);
    if (is_scalar) {
      const std::vector<T> moments = next_scalars();
      for (Index i = 0; i < b; ++i) {
        const AdamNumbers a = numbers(i);
        finite[i] = std::isfinite(moments[i]);
        const T moment = most == nullptr ? moments[i] : std::max(moments[i], most[i]);
        divisors[i] = (std::sqrt(moment / a.correction2) + epsilon) * a.correction1;
      }
    }
    Finite all(b, count, finite);
    for_each_piece([&](Index i, Index begin, Index length, Index piece) {
      const Index at = i * count + begin;
      all.of_piece[piece] = direction_of(g + parts * at, first + parts * at,
                                         elementwise(second, at), elementwise(most, at),
                                         divisors[i], numbers(i), parts, length, out + parts * at);
    });
    all.gather();
  }

  // Take the next moments of the matrices that are active.
  void commit(const bool* active) const {
    if (is_scalar) {
      const std::vector<T> moments = next_scalars();
      for (Index i = 0; i < b; ++i) {
        if (!active[i]) continue;
        second[i] = moments[i];
        if (most != nullptr) most[i] = std::max(most[i], moments[i]);
      }
    }
    for_each_piece([&](Index i, Index begin, Index length, Index) {
      const Index at = i * count + begin;
      if (active[i])
        advance_of(g + parts * at, first + parts * at, elementwise(second, at),
                   elementwise(most, at), numbers(i), parts, length);
    });
  }

 private:
  Index pieces() const { return pieces_of(count); }

  template <typename Work>
  void for_each_piece(const Work& work) const {
    for_each_piece_of<T>(b, count, parts, threads, work);
  }

  AdamNumbers numbers(Index i) const {
    const double step = static_cast<double>(taken[i]) + 1;
    return {beta1, beta2, epsilon, 1 - std::pow(beta1, step), 1 - std::pow(beta2, step)};
  }

  T* elementwise(T* moments, Index at) const {
    return is_scalar || moments == nullptr ? nullptr : moments + at;
  }

  std::vector<T> next_scalars() const {
    std::vector<double> totals(b * pieces());
    for_each_piece([&](Index i, Index begin, Index length, Index piece) {
      totals[piece] = sum_of_squares_of(g + parts * (i * count + begin), parts, length);
    });
    std::vector<T> moments(b);
    for (Index i = 0; i < b; ++i) {
      double total = 0;
      for (Index piece = 0; piece < pieces(); ++piece) total += totals[i * pieces() + piece];
      moments[i] = mixed(second[i], static_cast<T>(total), static_cast<T>(1 - beta2));
    }
    return moments;
  }
};

}  // namespace
