// Vectors of numbers, and functions compiled for each width of them that processors have.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#define INLINE inline __attribute__((always_inline))

// Loops over single numbers are left to the compiler, once for each kind of processor where it can
// do that.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif

namespace {

using Index = std::int64_t;

// One vector of W bytes.
template <int W, typename T>
struct Lanes {
  static constexpr Index count = W / sizeof(T);
  typedef T Aligned __attribute__((vector_size(W)));
  typedef T Vector __attribute__((vector_size(W), aligned(sizeof(T)), may_alias));
};

template <int W, typename T>
INLINE typename Lanes<W, T>::Vector& vector_at(T* p) {
  return *reinterpret_cast<typename Lanes<W, T>::Vector*>(p);
}

template <int W, typename T>
INLINE const typename Lanes<W, T>::Vector& vector_at(const T* p) {
  return *reinterpret_cast<const typename Lanes<W, T>::Vector*>(p);
}

// A function that is made of vectors has a template `NAME_by` with their width first.
// FOR_EACH_WIDTH defines NAME, which calls the one for the widest vectors of this processor.
#if defined(__x86_64__)
enum : int { without_avx = 16, with_avx2 = 32, with_avx512 = 64 };

inline int widest_vectors() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return with_avx512;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? with_avx2 : without_avx;
}
int vector_bytes = widest_vectors();

#define FOR_EACH_WIDTH(RESULT, NAME, PARAMETERS, ARGUMENTS)                                    \
  __attribute__((                                                                              \
      target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) RESULT NAME##_of_64 PARAMETERS { \
    return NAME##_by<64> ARGUMENTS;                                                            \
  }                                                                                            \
  __attribute__((target("avx2,fma"))) RESULT NAME##_of_32 PARAMETERS {                         \
    return NAME##_by<32> ARGUMENTS;                                                            \
  }                                                                                            \
  RESULT NAME##_of_16 PARAMETERS { return NAME##_by<16> ARGUMENTS; }                           \
  inline RESULT NAME PARAMETERS {                                                              \
    return vector_bytes == with_avx512 ? NAME##_of_64 ARGUMENTS                                \
           : vector_bytes == with_avx2 ? NAME##_of_32 ARGUMENTS                                \
                                       : NAME##_of_16 ARGUMENTS;                               \
  }
// How many registers there are for them.
constexpr int registers_of(int width) { return width == with_avx512 ? 32 : 16; }
#else
#define FOR_EACH_WIDTH(RESULT, NAME, PARAMETERS, ARGUMENTS) \
  inline RESULT NAME PARAMETERS { return NAME##_by<16> ARGUMENTS; }
constexpr int registers_of(int) { return 32; }
inline int widest_vectors() { return 16; }
int vector_bytes = 16;
#endif

// The narrowest vectors.
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
template <int W, typename T>
INLINE typename Narrow<T>::Vector folded(const T* lane) {
  if constexpr (W == 16) {
    typename Narrow<T>::Vector all;
    std::memcpy(&all, lane, sizeof all);
    return all;
  } else {
    typedef T Half __attribute__((vector_size(W / 2)));
    constexpr Index half = W / 2 / sizeof(T);
    Half low, high;
    std::memcpy(&low, lane, sizeof low);
    std::memcpy(&high, lane + half, sizeof high);
    low += high;
    T sum[half];
    std::memcpy(sum, &low, sizeof sum);
    return folded<W / 2, T>(sum);
  }
}

// The sum of a vector, by halves.
template <int W, typename T>
INLINE T total_of(const T* lane) {
  const typename Narrow<T>::Vector sum = folded<W>(lane);
  if constexpr (sizeof(T) == 8)
    return sum[0] + sum[1];
  else
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

// The sums of four vectors that lie one after the other: the same bits, in fewer operations.
template <int W>
INLINE void totals_of(const float* four, float* to) {
  constexpr Index lanes = Lanes<W, float>::count;
  const auto u = folded<W>(four), v = folded<W>(four + lanes);
  const auto w = folded<W>(four + 2 * lanes), x = folded<W>(four + 3 * lanes);
  const auto uv = SHUFFLED(float, u, v, 0, 1, 4, 5) + SHUFFLED(float, u, v, 2, 3, 6, 7);
  const auto wx = SHUFFLED(float, w, x, 0, 1, 4, 5) + SHUFFLED(float, w, x, 2, 3, 6, 7);
  const auto sums = SHUFFLED(float, uv, wx, 0, 2, 4, 6) + SHUFFLED(float, uv, wx, 1, 3, 5, 7);
  std::memcpy(to, &sums, sizeof sums);
}

template <int W>
INLINE void totals_of(const double* four, double* to) {
  constexpr Index lanes = Lanes<W, double>::count;
  for (int pair = 0; pair < 4; pair += 2) {
    const auto u = folded<W>(four + pair * lanes), v = folded<W>(four + (pair + 1) * lanes);
    const auto sums = SHUFFLED(double, u, v, 0, 2) + SHUFFLED(double, u, v, 1, 3);
    std::memcpy(to + pair, &sums, sizeof sums);
  }
}

// The sums of `count` vectors that lie one after the other.
template <int W, int count, typename T>
INLINE void totals(const T* vectors, T* to) {
  int q = 0;
  for (; q + 4 <= count; q += 4) totals_of<W>(vectors + q * Lanes<W, T>::count, to + q);
  for (; q < count; ++q) to[q] = total_of<W>(vectors + q * Lanes<W, T>::count);
}

}  // namespace
