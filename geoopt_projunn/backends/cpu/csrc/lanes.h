// Vectors of numbers, in the widest registers of the processor that runs.

#pragma once

#include <cstdint>
#include <cstring>

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

// By halves, in narrower and narrower registers: short rows end in hardly anything else.
template <typename T, int bytes>
INLINE T total_of(const T* lane) {
  constexpr Index half = bytes / 2 / sizeof(T);
  if constexpr (half == 1) {
    return lane[0] + lane[1];
  } else {
    typedef T Half __attribute__((vector_size(bytes / 2)));
    Half low, high;
    std::memcpy(&low, lane, sizeof low);
    std::memcpy(&high, lane + half, sizeof high);
    low += high;
    T sum[half];
    std::memcpy(sum, &low, sizeof sum);
    return total_of<T, bytes / 2>(sum);
  }
}

}  // namespace
