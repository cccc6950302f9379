// Memory to work in, aligned as the widest vectors: others would lie across two lines of the cache.

#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace {

constexpr std::align_val_t line_bytes{64};

template <typename T>
struct OfLines {
  using value_type = T;
  OfLines() = default;
  template <typename U>
  OfLines(const OfLines<U>&) {}
  T* allocate(std::size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), line_bytes));
  }
  void deallocate(T* data, std::size_t) { ::operator delete(data, line_bytes); }
  bool operator==(const OfLines&) const { return true; }
  bool operator!=(const OfLines&) const { return false; }
};

template <typename T>
using Buffer = std::vector<T, OfLines<T>>;

}  // namespace
