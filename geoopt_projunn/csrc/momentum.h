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

// Of b matrices of `count` entries each.
template <typename T>
struct Momentum {
  Index b, parts, count, threads;
  const T* g;
  T* m;
  const Index* taken;
  double keep, dampening;
  bool nesterov;

  // Write the directions, and whether the momenta that made them are finite.
  void propose(T* out, bool* finite) const {
    std::fill_n(finite, b, true);
    Finite all(b, count, finite);
    for_each_piece([&](Index i, Index begin, Index length, Index piece) {
      const Index at = parts * (i * count + begin);
      all.of_piece[piece] = direction(i, at, parts * length, out + at);
    });
    all.gather();
  }

  // Numbers of the direction of matrix i.
  bool direction(Index i, Index at, Index length, T* to) const {
    return blend_of(m + at, g + at, static_cast<T>(keep), share(i), nesterov, length, to);
  }

  // Take the next momenta of the matrices that are active.
  void commit(const bool* active) const {
    for_each_piece([&](Index i, Index begin, Index length, Index) {
      const Index at = parts * (i * count + begin);
      if (active[i]) blend_in_place(m + at, g + at, static_cast<T>(keep), share(i), parts * length);
    });
  }

 private:
  // The first step of each takes the gradient undamped.
  T share(Index i) const { return static_cast<T>(taken[i] > 0 ? 1 - dampening : 1); }

  template <typename Work>
  void for_each_piece(const Work& work) const {
    for_each_piece_of<T>(b, count, parts, threads, work);
  }
};

template <typename T>
class MomentumMemory final : public Memory<T> {
 public:
  explicit MomentumMemory(const Momentum<T>& of_one) : one_(of_one) {}
  void advance() override {
    const bool active = true;
    one_.commit(&active);
  }

 private:
  bool direction(Index begin, Index count, T* to) const override {
    return one_.direction(0, begin, count, to);
  }
  Momentum<T> one_;
};

}  // namespace
