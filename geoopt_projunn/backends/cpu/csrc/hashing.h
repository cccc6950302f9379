// What a counter determines: whose turn it is, and the pseudo-random numbers of
// geoopt_projunn.linalg.hashing.

#pragma once

#include <cstdint>

#include "lanes.h"

namespace {

// The first of `count` places of n whose turn it is, for any counter.
inline Index first_in_turn(Index counter, Index count, Index n) {
  const Index first = (counter % n) * (count % n) % n;
  return first < 0 ? first + n : first;
}

class Uniform {
 public:
  // `length` numbers belong to each counter.
  Uniform(Index counter, Index length)
      : start_((static_cast<std::uint64_t>(counter) & mask) * static_cast<std::uint64_t>(length)) {}

  double operator[](Index index) const {
    std::uint64_t bits = (start_ + static_cast<std::uint64_t>(index) + 1) & mask;
    bits = ((bits ^ (bits >> 16)) * 0x21F0AAADu) & mask;
    bits = ((bits ^ (bits >> 15)) * 0x735A2D97u) & mask;
    bits ^= bits >> 15;
    return static_cast<double>(bits) * 0x1p-31 + (0x1p-32 - 1.0);
  }

 private:
  static constexpr std::uint64_t mask = 0xFFFFFFFFu;
  std::uint64_t start_;
};

}  // namespace
