// Work in parts, each on a thread of its own.

#pragma once

#include <algorithm>
#include <exception>
#include <new>

#include "lanes.h"

namespace {

// Call work(first, last) for contiguous parts of the range, each on a thread of its own.
template <typename Work>
void in_parts(Index count, Index threads, const Work& work) {
  threads = std::min(threads, count);
#ifdef _OPENMP
  if (threads > 1) {
    bool enough = true;
#pragma omp parallel for num_threads(static_cast<int>(threads)) schedule(static) \
    reduction(&& : enough)
    for (Index part = 0; part < threads; ++part) {
      // No exception may leave a thread of OpenMP.
      try {
        work(part * count / threads, (part + 1) * count / threads);
      } catch (const std::exception&) {
        enough = false;
      }
    }
    if (!enough) throw std::bad_alloc();
    return;
  }
#endif
  work(Index(0), count);
}

}  // namespace
