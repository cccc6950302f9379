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

// The `count` numbers of a counter.
FOR_EACH_CPU void draw_uniform(Index counter, Index count, double* to) {
  const std::uint32_t start =
      static_cast<std::uint32_t>(counter) * static_cast<std::uint32_t>(count);
  for (Index i = 0; i < count; ++i) {
    std::uint32_t bits = start + static_cast<std::uint32_t>(i) + 1;
    bits = (bits ^ (bits >> 16)) * 0x21F0AAADu;
    bits = (bits ^ (bits >> 15)) * 0x735A2D97u;
    bits ^= bits >> 15;
    to[i] = static_cast<double>(bits) * 0x1p-31 + (0x1p-32 - 1.0);
  }
}

}  // namespace
