// Work on all entries of a batch of matrices.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "passes.h"
#include "threads.h"

namespace {

// Of entries: what lies between two loops over them stays in the innermost cache.
constexpr Index block_entries = 256;

// What one thread takes at a time.
constexpr Index piece_entries = 64 * block_entries;

// Whether none of the numbers is infinite or NaN, by their exponents.
template <typename T>
INLINE bool all_finite(const T* numbers, Index count) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  constexpr int digits = sizeof(T) == 4 ? 23 : 52;
  constexpr Bits exponents = (Bits(1) << (8 * sizeof(T) - 1 - digits)) - 1;
  Bits largest = 0;
  for (Index i = 0; i < count; ++i) {
    Bits bits;
    std::memcpy(&bits, numbers + i, sizeof bits);
    largest = std::max(largest, static_cast<Bits>((bits >> digits) & exponents));
  }
  return largest < exponents;
}

inline Index pieces_of(Index count) { return (count + piece_entries - 1) / piece_entries; }

// Call work(matrix, begin, length, piece) for all pieces of b matrices of `count` entries.
template <typename T, typename Work>
void for_each_piece_of(Index b, Index count, Index parts, Index threads, const Work& work) {
  const Index pieces = pieces_of(count), bytes = b * count * parts * static_cast<Index>(sizeof(T));
  in_parts(b * pieces, std::min(threads, 1 + bytes / bytes_for_a_thread),
           [&](Index piece, Index last) {
             for (; piece < last; ++piece) {
               const Index begin = piece % pieces * piece_entries;
               work(piece / pieces, begin, std::min(piece_entries, count - begin), piece);
             }
           });
}

// Whether all of a matrix is finite; by pieces, for two threads may work on one matrix.
struct Finite {
  std::vector<char> of_piece;
  Index pieces;
  bool* of_matrix;

  // `of_matrix` says what is known beforehand.
  Finite(Index b, Index count, bool* of_matrix)
      : of_piece(b * pieces_of(count), 1), pieces(pieces_of(count)), of_matrix(of_matrix) {}

  void gather() const {
    for (std::size_t piece = 0; piece < of_piece.size(); ++piece)
      if (!of_piece[piece]) of_matrix[static_cast<Index>(piece) / pieces] = false;
  }
};

}  // namespace
