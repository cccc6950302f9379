// Momentum, and whether it is finite, in one pass.

#pragma once

#include "elementwise.h"

namespace {

// to = keep m + share g, `count` numbers; return whether all are finite.
template <typename T>
INLINE bool blend(const T* m, const T* g, T keep, T share, Index count, T* to) {
  bool finite = true;
  for (Index begin = 0; begin < count; begin += block_entries) {
    const Index end = std::min(count, begin + block_entries);
    for (Index i = begin; i < end; ++i) to[i] = keep * m[i] + share * g[i];
    finite &= all_finite(to + begin, end - begin);
  }
  return finite;
}

FOR_EACH_CPU bool blend_of(const float* m, const float* g, float keep, float share, Index count,
                           float* to) {
  return blend(m, g, keep, share, count, to);
}

FOR_EACH_CPU bool blend_of(const double* m, const double* g, double keep, double share, Index count,
                           double* to) {
  return blend(m, g, keep, share, count, to);
}

// Of b matrices of `count` entries: the first step of each takes the gradient undamped.
template <typename T>
void momentum(Index b, Index count, Index parts, Index threads, const T* g, const T* m,
              const Index* taken, double keep, double dampening, T* to, bool* finite) {
  std::fill_n(finite, b, true);
  Finite all(b, count, finite);
  for_each_piece_of<T>(
      b, count, parts, threads, [&](Index i, Index begin, Index length, Index piece) {
        const Index at = parts * (i * count + begin);
        const double share = taken[i] > 0 ? 1 - dampening : 1;
        all.of_piece[piece] = blend_of(m + at, g + at, static_cast<T>(keep), static_cast<T>(share),
                                       parts * length, to + at);
      });
  all.gather();
}

}  // namespace
