// The moments of Adam and the direction they make, in one pass over all of them.

#pragma once

#include <algorithm>
#include <cmath>

#include "buffers.h"
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

// What Adam keeps of a matrix of `count` entries. With `is_scalar` the second moment and the
// largest so far are one number.
template <typename T>
class AdamMemory final : public Memory<T> {
 public:
  struct Kept {
    Index parts, count, threads;
    bool is_scalar;
    const T* g;
    T *first, *second, *most;
    Index taken;
    double beta1, beta2, epsilon;
  };
  explicit AdamMemory(const Kept& kept) : k_(kept), numbers_(numbers_of(kept)) {
    if (!k_.is_scalar) return;
    next_scalar_ = next_scalar();
    const T moment = k_.most == nullptr ? next_scalar_ : std::max(next_scalar_, *k_.most);
    divisor_ = std::isfinite(next_scalar_) ? numbers_.scale * std::sqrt(moment) + numbers_.least
                                           : static_cast<double>(next_scalar_);
  }

  void advance() override {
    if (k_.is_scalar) {
      *k_.second = next_scalar_;
      if (k_.most != nullptr) *k_.most = std::max(*k_.most, next_scalar_);
    }
    for_each_piece([&](Index begin, Index length, Index) {
      const Index at = k_.parts * begin;
      advance_of(k_.g + at, k_.first + at, elementwise(k_.second, begin),
                 elementwise(k_.most, begin), numbers_, k_.parts, length);
    });
  }

 private:
  static AdamNumbers numbers_of(const Kept& k) {
    const double step = static_cast<double>(k.taken) + 1;
    const double correction1 = 1 - std::pow(k.beta1, step),
                 correction2 = 1 - std::pow(k.beta2, step);
    return {k.beta1, k.beta2, correction1 / std::sqrt(correction2), k.epsilon * correction1};
  }

  bool direction(Index begin, Index count, T* to) const override {
    const Index entry = begin / k_.parts;
    return direction_of(k_.g + begin, k_.first + begin, elementwise(k_.second, entry),
                        elementwise(k_.most, entry), divisor_, numbers_, k_.parts, count / k_.parts,
                        to) &&
           std::isfinite(divisor_);
  }

  template <typename Work>
  void for_each_piece(const Work& work) const {
    for_each_piece_of<T>(k_.count, k_.parts, k_.threads, work);
  }

  T* elementwise(T* moments, Index entry) const {
    return k_.is_scalar || moments == nullptr ? nullptr : moments + entry;
  }

  // Summed piece by piece, so that threads make no difference.
  T next_scalar() const {
    Buffer<double> totals(pieces_of(k_.count));
    for_each_piece([&](Index begin, Index length, Index piece) {
      totals[piece] = sum_of_squares_of(k_.g + k_.parts * begin, k_.parts, length);
    });
    double total = 0;
    for (double of_piece : totals) total += of_piece;
    return mixed(*k_.second, static_cast<T>(total), static_cast<T>(1 - k_.beta2));
  }

  Kept k_;
  AdamNumbers numbers_;
  T next_scalar_ = 0;
  double divisor_ = 0;
};

}  // namespace
