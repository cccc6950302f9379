// Momentum, with what it needs to be finite, in one pass.

#pragma once

#include "elementwise.h"
#include "memory.h"

namespace {

// to = keep m + share g, `count` numbers, or g + keep to; return whether the former are finite.
template <typename T>
INLINE bool blend(const T* m, const T* g, T keep, T share, bool nesterov, Index count, T* to) {
  bool finite = true;
  for (Index begin = 0; begin < count; begin += block_entries) {
    const Index end = std::min(count, begin + block_entries);
    for (Index i = begin; i < end; ++i) to[i] = keep * m[i] + share * g[i];
    finite &= all_finite(to + begin, end - begin);
    if (nesterov)
      for (Index i = begin; i < end; ++i) to[i] = g[i] + keep * to[i];
  }
  return finite;
}

// The same in place: of two pointers a compiler must think that they might overlap elsewhere.
template <typename T>
INLINE void blend_into(T* m, const T* g, T keep, T share, Index count) {
  for (Index i = 0; i < count; ++i) m[i] = keep * m[i] + share * g[i];
}

#define FOR_TYPE(T)                                                                               \
  FOR_EACH_CPU bool blend_of(const T* m, const T* g, T keep, T share, bool nesterov, Index count, \
                             T* to) {                                                             \
    return blend(m, g, keep, share, nesterov, count, to);                                         \
  }                                                                                               \
  FOR_EACH_CPU void blend_in_place(T* m, const T* g, T keep, T share, Index count) {              \
    blend_into(m, g, keep, share, count);                                                         \
  }
FOR_TYPE(float)
FOR_TYPE(double)
#undef FOR_TYPE

// Of a matrix of `count` entries.
template <typename T>
class MomentumMemory final : public Memory<T> {
 public:
  struct Kept {
    Index parts, count, threads;
    const T* g;
    T* m;
    Index taken;
    double keep, dampening;
    bool nesterov;
  };
  explicit MomentumMemory(const Kept& kept)
      : k_(kept),
        keep_(static_cast<T>(kept.keep)),
        // The first step takes the gradient undamped.
        share_(static_cast<T>(kept.taken > 0 ? 1 - kept.dampening : 1)) {}

  void advance() override {
    for_each_piece_of<T>(k_.count, k_.parts, k_.threads, [&](Index begin, Index length, Index) {
      const Index at = k_.parts * begin;
      blend_in_place(k_.m + at, k_.g + at, keep_, share_, k_.parts * length);
    });
  }

 private:
  bool direction(Index begin, Index count, T* to) const override {
    return blend_of(k_.m + begin, k_.g + begin, keep_, share_, k_.nesterov, count, to);
  }
  Kept k_;
  T keep_, share_;
};

}  // namespace
