// Vectors of numbers, in the widest registers of the processor that runs.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

// Registers wider than those that every processor has are chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && !defined(__AVX2__)
#error "With vectors of 16 bytes BLAS is faster: the package does without the kernels."
#else
#define FOR_EACH_CPU
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

using Index = std::int64_t;

// One vector: the widest register there is, made of narrower ones where it is not.
template <typename T>
struct Lanes {
  static constexpr Index count = 64 / sizeof(T);
  typedef T Aligned __attribute__((vector_size(64)));
  typedef T Vector __attribute__((vector_size(64), aligned(sizeof(T)), may_alias));
};

template <typename T>
INLINE typename Lanes<T>::Vector& vector_at(T* p) {
  return *reinterpret_cast<typename Lanes<T>::Vector*>(p);
}

template <typename T>
INLINE const typename Lanes<T>::Vector& vector_at(const T* p) {
  return *reinterpret_cast<const typename Lanes<T>::Vector*>(p);
}

// The narrowest register there is.
template <typename T>
struct Narrow {
  typedef T Vector __attribute__((vector_size(16)));
  typedef std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t> Place;
  typedef Place Places __attribute__((vector_size(16)));
};

// Lanes of two narrow vectors, those of b numbered after those of a.
#if defined(__clang__)
#define SHUFFLED(T, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLED(T, a, b, ...) __builtin_shuffle(a, b, Narrow<T>::Places{__VA_ARGS__})
#endif

// A vector folded by halves, the upper one added to the lower, to a narrow one.
template <typename T, int bytes = 64>
INLINE typename Narrow<T>::Vector folded(const T* lane) {
  typedef T Half __attribute__((vector_size(bytes / 2)));
  constexpr Index half = bytes / 2 / sizeof(T);
  Half low, high;
  std::memcpy(&low, lane, sizeof low);
  std::memcpy(&high, lane + half, sizeof high);
  low += high;
  if constexpr (bytes == 32) {
    return low;
  } else {
    T sum[half];
    std::memcpy(sum, &low, sizeof sum);
    return folded<T, bytes / 2>(sum);
  }
}

// The sum of a vector, by halves.
template <typename T>
INLINE T total_of(const T* lane) {
  const typename Narrow<T>::Vector sum = folded(lane);
  if constexpr (sizeof(T) == 8)
    return sum[0] + sum[1];
  else
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// The sums of four vectors: the same bits, in fewer operations. With short rows, sums like these
// are a third of the work.
INLINE void totals_of(const float* a, const float* b, const float* c, const float* d, float* to) {
  using Vector = Narrow<float>::Vector;
  const Vector u = folded(a), v = folded(b), w = folded(c), x = folded(d);
  const Vector uv = SHUFFLED(float, u, v, 0, 1, 4, 5) + SHUFFLED(float, u, v, 2, 3, 6, 7);
  const Vector wx = SHUFFLED(float, w, x, 0, 1, 4, 5) + SHUFFLED(float, w, x, 2, 3, 6, 7);
  const Vector sums = SHUFFLED(float, uv, wx, 0, 2, 4, 6) + SHUFFLED(float, uv, wx, 1, 3, 5, 7);
  std::memcpy(to, &sums, sizeof sums);
}

INLINE void totals_of(const double* a, const double* b, const double* c, const double* d,
                      double* to) {
  using Vector = Narrow<double>::Vector;
  const Vector u = folded(a), v = folded(b), w = folded(c), x = folded(d);
  const Vector uv = SHUFFLED(double, u, v, 0, 2) + SHUFFLED(double, u, v, 1, 3);
  const Vector wx = SHUFFLED(double, w, x, 0, 2) + SHUFFLED(double, w, x, 1, 3);
  std::memcpy(to, &uv, sizeof uv);
  std::memcpy(to + 2, &wx, sizeof wx);
}

}  // namespace
