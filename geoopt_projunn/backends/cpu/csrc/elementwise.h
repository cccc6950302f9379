// Work on all entries of a matrix.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "passes.h"
#include "threads.h"

namespace {

// Of entries: what lies between two loops over them stays in the innermost cache.
constexpr Index block_entries = 256;

// What one thread takes at a time.
constexpr Index piece_entries = 64 * block_entries;

template <typename T>
using BitsOf = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
template <typename T>
constexpr int digits_of = sizeof(T) == 4 ? 23 : 52;
// What infinity and NaN have, and nothing else.
template <typename T>
constexpr BitsOf<T> largest_exponent = (BitsOf<T>(1) << (8 * sizeof(T) - 1 - digits_of<T>)) - 1;

template <typename T>
INLINE BitsOf<T> exponent_of(T number) {
  BitsOf<T> bits;
  std::memcpy(&bits, &number, sizeof bits);
  return static_cast<BitsOf<T>>((bits >> digits_of<T>)&largest_exponent<T>);
}

// Whether none of the numbers is infinite or NaN.
template <typename T>
INLINE bool all_finite(const T* numbers, Index count) {
  BitsOf<T> exponent = 0;
  for (Index i = 0; i < count; ++i) exponent = std::max(exponent, exponent_of(numbers[i]));
  return exponent < largest_exponent<T>;
}

inline Index pieces_of(Index count) { return (count + piece_entries - 1) / piece_entries; }

// Call work(begin, length, piece) for all pieces of `count` entries.
template <typename T, typename Work>
void for_each_piece_of(Index count, Index parts, Index threads, const Work& work) {
  const Index bytes = count * parts * static_cast<Index>(sizeof(T));
  in_parts(pieces_of(count), std::min(threads, 1 + bytes / bytes_for_a_thread),
           [&](Index piece, Index last) {
             for (; piece < last; ++piece) {
               const Index begin = piece * piece_entries;
               work(begin, std::min(piece_entries, count - begin), piece);
             }
           });
}

}  // namespace
