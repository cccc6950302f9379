// The moments of Adam and the direction they make, in one pass over all of them.

#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "elementwise.h"
#include "memory.h"

namespace {

// sqrt(second / correction2) + epsilon, times correction1, is scale sqrt(second) + least.
struct AdamNumbers {
  double beta1, beta2, scale, least;
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

// The direction of `count` entries; with one second moment for each entry, and the largest so far,
// or `of_all` as the divisor of all.
template <int parts, bool elementwise, bool largest, typename T>
INLINE bool direction(const T* __restrict g, const T* __restrict first, const T* __restrict second,
                      const T* __restrict most, double of_all, const AdamNumbers& a, Index count,
                      T* __restrict out) {
  const T share1 = static_cast<T>(1 - a.beta1), share2 = static_cast<T>(1 - a.beta2);
  const T scale = static_cast<T>(a.scale), least = static_cast<T>(a.least);
  BitsOf<T> exponent = 0;
  T square[block_entries], divisor[block_entries];
  for (Index begin = 0; begin < count; begin += block_entries) {
    const Index length = std::min(block_entries, count - begin);
    if constexpr (elementwise) {
      squares<parts>(g + parts * begin, length, square);
      for (Index i = 0; i < length; ++i) {
        T moment = mixed(second[begin + i], square[i], share2);
        // Before the largest so far is taken, which hides what is not a number.
        exponent = std::max(exponent, exponent_of(moment));
        if constexpr (largest) moment = std::max(moment, most[begin + i]);
        divisor[i] = scale * std::sqrt(moment) + least;
      }
    } else {
      std::fill_n(divisor, length, static_cast<T>(of_all));
    }
    for (Index j = 0; j < parts * length; ++j) {
      const T moment = mixed(first[parts * begin + j], g[parts * begin + j], share1);
      exponent = std::max(exponent, exponent_of(moment));
      out[parts * begin + j] = moment;
    }
    for (Index i = 0; i < length; ++i)
      for (int part = 0; part < parts; ++part) out[parts * (begin + i) + part] /= divisor[i];
  }
  return exponent < largest_exponent<T>;
}

template <int parts, typename T>
INLINE bool direction(const T* g, const T* first, const T* second, const T* most, double of_all,
                      const AdamNumbers& a, Index count, T* out) {
  if (second == nullptr)
    return direction<parts, false, false>(g, first, second, most, of_all, a, count, out);
  if (most == nullptr)
    return direction<parts, true, false>(g, first, second, most, of_all, a, count, out);
  return direction<parts, true, true>(g, first, second, most, of_all, a, count, out);
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
    const std::vector<double> divisors = scalar_divisors();
    for (Index i = 0; i < b; ++i) finite[i] = std::isfinite(divisors[i]);
    Finite all(b, count, finite);
    for_each_piece([&](Index i, Index begin, Index length, Index piece) {
      const Index at = i * count + begin;
      all.of_piece[piece] = direction(numbers(i), divisors[i], at, length, out + parts * at);
    });
    all.gather();
  }

  // What divides all of a matrix, not finite where the moment is not; 0 where there is none such.
  std::vector<double> scalar_divisors() const {
    std::vector<double> divisors(b);
    if (!is_scalar) return divisors;
    const std::vector<T> moments = next_scalars();
    for (Index i = 0; i < b; ++i) {
      const AdamNumbers a = numbers(i);
      const T moment = most == nullptr ? moments[i] : std::max(moments[i], most[i]);
      divisors[i] = std::isfinite(moments[i]) ? a.scale * std::sqrt(moment) + a.least
                                              : static_cast<double>(moments[i]);
    }
    return divisors;
  }

  // Some entries of the directions, all of one matrix.
  bool direction(const AdamNumbers& a, double divisor, Index at, Index length, T* to) const {
    return direction_of(g + parts * at, first + parts * at, elementwise(second, at),
                        elementwise(most, at), divisor, a, parts, length, to);
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

  AdamNumbers numbers(Index i) const {
    const double step = static_cast<double>(taken[i]) + 1;
    const double correction1 = 1 - std::pow(beta1, step), correction2 = 1 - std::pow(beta2, step);
    return {beta1, beta2, correction1 / std::sqrt(correction2), epsilon * correction1};
  }

 private:
  Index pieces() const { return pieces_of(count); }

  template <typename Work>
  void for_each_piece(const Work& work) const {
    for_each_piece_of<T>(b, count, parts, threads, work);
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

template <typename T>
class AdamMemory final : public Memory<T> {
 public:
  explicit AdamMemory(const Adam<T>& of_one)
      : one_(of_one), numbers_(one_.numbers(0)), divisor_(one_.scalar_divisors().front()) {}
  void advance() override {
    const bool active = true;
    one_.commit(&active);
  }

 private:
  bool direction(Index begin, Index count, T* to) const override {
    const Index parts = one_.parts;
    return one_.direction(numbers_, divisor_, begin / parts, count / parts, to) &&
           std::isfinite(divisor_);
  }
  Adam<T> one_;
  AdamNumbers numbers_;
  double divisor_;
};

}  // namespace
