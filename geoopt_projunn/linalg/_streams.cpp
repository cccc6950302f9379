// Products of a few rows with matrices, reading each matrix once.
//
// BLAS reads a matrix once for each row and each side; where the rows are few, reading is all
// the work. Everything here is real: a complex matrix of m columns is a real one of 2m, a
// complex row two real ones.
//
// Nothing of torch or Python's private API is used, so that one build serves all their versions.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <new>
#include <vector>

// Registers wider than those that every processor has are chosen when the library is loaded.
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && __GNUC__ >= 12
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && !defined(__AVX2__)
#error "With vectors of 16 bytes BLAS is faster: the package does without this extension."
#else
#define FOR_EACH_CPU
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

using Index = std::int64_t;

// Of a matrix: rows that stay in a core's own cache while all that is asked of them is done.
constexpr Index panel_bytes = 256 * 1024;
// Of a matrix, for one thread at a time.
constexpr Index chunk_rows = 128;
// Less than this is done before another thread has woken up.
constexpr Index bytes_for_a_thread = 128 * 1024;

template <typename T>
INLINE Index panel_rows(Index m) {
  return std::max<Index>(8, panel_bytes / static_cast<Index>(sizeof(T)) / std::max<Index>(1, m));
}

inline Index chunks_of(Index n) { return (n + chunk_rows - 1) / chunk_rows; }

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

// Rows from `first` on, B of them: add left * rows to out_left, write right . rows to out_right.
template <typename T, int L, int R, int B>
INLINE void some_rows(const T* a, Index first, Index n, Index m, const T* left, const T* right,
                      T* out_left, T* out_right) {
  using Vector = typename Lanes<T>::Aligned;
  constexpr Index lanes = Lanes<T>::count;
  const T* row[B];
  T factor[L > 0 ? L : 1][B];
  Vector sum[R > 0 ? R : 1][B];
  for (int i = 0; i < B; ++i) {
    row[i] = a + (first + i) * m;
    for (int l = 0; l < L; ++l) factor[l][i] = left[l * n + first + i];
    for (int r = 0; r < R; ++r) sum[r][i] = Vector{};
  }
  Index j = 0;
  for (; j + lanes <= m; j += lanes) {
    Vector value[B];
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) value[i] = vector_at(row[i] + j);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vector other = vector_at(right + r * m + j);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) sum[r][i] += value[i] * other;
    }
#pragma GCC unroll 8
    for (int l = 0; l < L; ++l) {
      Vector total = vector_at(out_left + l * m + j);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) total += factor[l][i] * value[i];
      vector_at(out_left + l * m + j) = total;
    }
  }
  for (int r = 0; r < R; ++r)
    for (int i = 0; i < B; ++i)
      out_right[r * n + first + i] = total_of<T, 64>(reinterpret_cast<const T*>(&sum[r][i]));
  for (; j < m; ++j) {
    for (int i = 0; i < B; ++i) {
      for (int r = 0; r < R; ++r) out_right[r * n + first + i] += row[i][j] * right[r * m + j];
      for (int l = 0; l < L; ++l) out_left[l * m + j] += factor[l][i] * row[i][j];
    }
  }
}

template <typename T, int L, int R>
INLINE void all_rows(const T* a, Index first, Index last, Index n, Index m, const T* left,
                     const T* right, T* out_left, T* out_right) {
  // As many rows at once as leave the sums in registers.
  constexpr int B = R > 4 ? 2 : 4;
  for (; first + B <= last; first += B)
    some_rows<T, L, R, B>(a, first, n, m, left, right, out_left, out_right);
  for (; first < last; ++first)
    some_rows<T, L, R, 1>(a, first, n, m, left, right, out_left, out_right);
}

// Any number of rows: as many at once as there are registers for.
template <typename T>
INLINE void sides(const T* a, Index first, Index last, Index n, Index m, Index l, Index r,
                  const T* left, const T* right, T* out_left, T* out_right) {
  const Index panel = panel_rows<T>(m);
  for (Index begin = first; begin < last; begin += panel) {
    const Index end = std::min(last, begin + panel);
    Index i = 0, j = 0;
#define TAKE(L, R)                                                                           \
  while (l - i >= L && r - j >= R) {                                                         \
    all_rows<T, L, R>(a, begin, end, n, m, left + i * n, right + j * m, out_left + i * m,    \
                      out_right + j * n);                                                    \
    i += L;                                                                                  \
    j += R;                                                                                  \
  }
    TAKE(4, 4) TAKE(2, 2) TAKE(1, 1)
    TAKE(8, 0) TAKE(4, 0) TAKE(2, 0) TAKE(1, 0)
    TAKE(0, 8) TAKE(0, 4) TAKE(0, 2) TAKE(0, 1)
#undef TAKE
  }
}

FOR_EACH_CPU void sides_of(const float* a, Index first, Index last, Index n, Index m, Index l,
                           Index r, const float* left, const float* right, float* out_left,
                           float* out_right) {
  sides<float>(a, first, last, n, m, l, r, left, right, out_left, out_right);
}

FOR_EACH_CPU void sides_of(const double* a, Index first, Index last, Index n, Index m, Index l,
                           Index r, const double* left, const double* right, double* out_left,
                           double* out_right) {
  sides<double>(a, first, last, n, m, l, r, left, right, out_left, out_right);
}

// Rows from `first` on, B of them: a += rows^T factor.
template <typename T, int U, int B>
INLINE void update_some(T* a, Index first, Index n, Index m, const T* rows, const T* factor) {
  using Vector = typename Lanes<T>::Aligned;
  constexpr Index lanes = Lanes<T>::count;
  T* row[B];
  T by[U][B];
  for (int i = 0; i < B; ++i) {
    row[i] = a + (first + i) * m;
    for (int u = 0; u < U; ++u) by[u][i] = rows[u * n + first + i];
  }
  Index j = 0;
  for (; j + lanes <= m; j += lanes) {
    Vector total[B];
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) total[i] = vector_at(row[i] + j);
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      const Vector value = vector_at(factor + u * m + j);
#pragma GCC unroll 8
      for (int i = 0; i < B; ++i) total[i] += by[u][i] * value;
    }
#pragma GCC unroll 8
    for (int i = 0; i < B; ++i) vector_at(row[i] + j) = total[i];
  }
  for (; j < m; ++j)
    for (int i = 0; i < B; ++i)
      for (int u = 0; u < U; ++u) row[i][j] += by[u][i] * factor[u * m + j];
}

template <typename T, int U>
INLINE void update(T* a, Index first, Index last, Index n, Index m, const T* rows,
                   const T* factor) {
  for (; first + 2 <= last; first += 2) update_some<T, U, 2>(a, first, n, m, rows, factor);
  for (; first < last; ++first) update_some<T, U, 1>(a, first, n, m, rows, factor);
}

template <typename T>
INLINE void updates(T* a, Index first, Index last, Index n, Index m, Index u, const T* rows,
                    const T* factor) {
  const Index panel = panel_rows<T>(m);
  for (Index begin = first; begin < last; begin += panel) {
    const Index end = std::min(last, begin + panel);
    Index i = 0;
#define TAKE(U)                                                            \
  for (; u - i >= U; i += U)                                               \
    update<T, U>(a, begin, end, n, m, rows + i * n, factor + i * m);
    TAKE(8) TAKE(4) TAKE(2) TAKE(1)
#undef TAKE
  }
}

FOR_EACH_CPU void update_of(float* a, Index first, Index last, Index n, Index m, Index u,
                            const float* rows, const float* factor) {
  updates<float>(a, first, last, n, m, u, rows, factor);
}

FOR_EACH_CPU void update_of(double* a, Index first, Index last, Index n, Index m, Index u,
                            const double* rows, const double* factor) {
  updates<double>(a, first, last, n, m, u, rows, factor);
}

// Interleaved complex numbers, times i or -i.
template <typename T>
void times_i(const T* from, Index count, T sign, T* to) {
  for (Index j = 0; j < 2 * count; j += 2) {
    to[j] = -sign * from[j + 1];
    to[j + 1] = sign * from[j];
  }
}

template <typename T>
void split(const T* rows, Index count, T* real, T* imaginary) {
  for (Index j = 0; j < count; ++j) {
    real[j] = rows[2 * j];
    imaginary[j] = rows[2 * j + 1];
  }
}

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

// A batch of b matrices (n, m); l rows from the left, r from the right.
struct Shape {
  Index b, n, m, l, r, threads;
  bool complex;

  // Real numbers in an entry, and in a row of the matrix.
  Index parts() const { return complex ? 2 : 1; }
  Index width() const { return parts() * m; }
  Index chunks() const { return chunks_of(n); }
  Shape with_useful_threads(std::size_t bytes) const {
    Shape other = *this;
    const Index useful = 1 + b * n * width() * static_cast<Index>(bytes) / bytes_for_a_thread;
    other.threads = std::max<Index>(1, std::min(threads, useful));
    return other;
  }
};

// Rows of one matrix as real ones, and what becomes of them.
template <typename T>
struct Scratch {
  std::vector<T> left, right, products, dots, shares;
};

// out_left (l, m) = left (l, n) @ a; out_right (r, n) = right (r, m) @ a^T, all real.
//
// Chunks are added in their order, so that the threads change no bit.
template <typename T>
void real_sides(Index n, Index m, Index l, Index r, Index threads, const T* a, const T* left,
                const T* right, T* out_left, T* out_right, std::vector<T>* shares) {
  const Index size = l * m, chunks = chunks_of(n);
  std::fill_n(out_left, size, T(0));
  if (chunks == 1) return sides_of(a, 0, n, n, m, l, r, left, right, out_left, out_right);
  const Index team = std::min(threads, chunks);
  shares->resize(team * size);
  for (Index begin = 0; begin < chunks; begin += team) {
    const Index count = std::min(team, chunks - begin);
    std::fill_n(shares->begin(), count * size, T(0));
    in_parts(count, team, [&](Index part, Index last_part) {
      for (; part < last_part; ++part) {
        const Index first = (begin + part) * chunk_rows, last = std::min(n, first + chunk_rows);
        sides_of(a, first, last, n, m, l, r, left, right, shares->data() + part * size, out_right);
      }
    });
    for (Index part = 0; part < count; ++part)
      for (Index j = 0; j < size; ++j) out_left[j] += (*shares)[part * size + j];
  }
}

// out_left (l, m) = left (l, n) @ a; out_right (r, n) = right (r, m) @ a^H, for one matrix.
template <typename T>
void sides_of_one(const Shape& s, const T* a, const T* left, const T* right, T* out_left,
                  T* out_right, Scratch<T>* scratch) {
  const Index n = s.n, width = s.width();
  if (!s.complex)
    return real_sides(n, width, s.l, s.r, s.threads, a, left, right, out_left, out_right,
                      &scratch->shares);
  scratch->left.resize(2 * s.l * n);
  scratch->products.resize(2 * s.l * width);
  scratch->right.resize(2 * s.r * width);
  scratch->dots.resize(2 * s.r * n);
  for (Index row = 0; row < s.l; ++row)
    split(left + 2 * row * n, n, &scratch->left[2 * row * n], &scratch->left[(2 * row + 1) * n]);
  for (Index row = 0; row < s.r; ++row) {
    std::copy_n(right + row * width, width, &scratch->right[2 * row * width]);
    times_i(right + row * width, s.m, T(-1), &scratch->right[(2 * row + 1) * width]);
  }
  real_sides(n, width, 2 * s.l, 2 * s.r, s.threads, a, scratch->left.data(),
             scratch->right.data(), scratch->products.data(), scratch->dots.data(),
             &scratch->shares);
  for (Index row = 0; row < s.l; ++row) {
    const T *by_real = &scratch->products[2 * row * width], *by_imaginary = by_real + width;
    T* to = out_left + row * width;
    times_i(by_imaginary, s.m, T(1), to);
    for (Index j = 0; j < width; ++j) to[j] += by_real[j];
  }
  for (Index row = 0; row < s.r; ++row)
    for (Index i = 0; i < n; ++i) {
      out_right[2 * (row * n + i)] = scratch->dots[2 * row * n + i];
      out_right[2 * (row * n + i) + 1] = scratch->dots[(2 * row + 1) * n + i];
    }
}

template <typename T>
void both_sides(const Shape& given, const T* a, const T* left, const T* right, T* out_left,
                T* out_right) {
  Shape s = given.with_useful_threads(sizeof(T));
  const Index c = s.parts(), threads = s.threads;
  // Of small matrices each thread takes some; of large ones all threads take chunks.
  if (s.chunks() == 1) s.threads = 1;
  in_parts(s.b, s.chunks() == 1 ? threads : 1, [&](Index matrix, Index last) {
    Scratch<T> scratch;
    for (; matrix < last; ++matrix)
      sides_of_one(s, a + matrix * s.n * s.width(), left + matrix * c * s.l * s.n,
                   right + matrix * s.r * s.width(), out_left + matrix * s.l * s.width(),
                   out_right + matrix * c * s.r * s.n, &scratch);
  });
}

// a (n, m) += rows^H factor, rows (l, n), factor (l, m), for one matrix.
template <typename T>
void add_product_to_one(const Shape& s, T* a, const T* rows, const T* factor,
                        Scratch<T>* scratch) {
  const Index n = s.n, width = s.width();
  if (s.complex) {
    scratch->left.resize(2 * s.l * n);
    scratch->right.resize(2 * s.l * width);
    for (Index row = 0; row < s.l; ++row) {
      split(rows + 2 * row * n, n, &scratch->left[2 * row * n], &scratch->left[(2 * row + 1) * n]);
      std::copy_n(factor + row * width, width, &scratch->right[2 * row * width]);
      times_i(factor + row * width, s.m, T(-1), &scratch->right[(2 * row + 1) * width]);
    }
    rows = scratch->left.data();
    factor = scratch->right.data();
  }
  in_parts(s.chunks(), s.threads, [&](Index chunk, Index last_chunk) {
    for (; chunk < last_chunk; ++chunk) {
      const Index first = chunk * chunk_rows, last = std::min(n, first + chunk_rows);
      update_of(a, first, last, n, width, s.parts() * s.l, rows, factor);
    }
  });
}

template <typename T>
void add_product(const Shape& given, T* a, const T* rows, const T* factor) {
  Shape s = given.with_useful_threads(sizeof(T));
  const Index c = s.parts(), threads = s.threads;
  if (s.chunks() == 1) s.threads = 1;
  in_parts(s.b, s.chunks() == 1 ? threads : 1, [&](Index matrix, Index last) {
    Scratch<T> scratch;
    for (; matrix < last; ++matrix)
      add_product_to_one(s, a + matrix * s.n * s.width(), rows + matrix * c * s.l * s.n,
                         factor + matrix * s.l * s.width(), &scratch);
  });
}

// kind, b, n, m, l, r, threads, then addresses. Bit 0 of kind: complex; bit 1: double precision.
bool parse(PyObject* const* args, Py_ssize_t count, int addresses, Shape* s, bool* is_double,
           std::intptr_t* address) {
  constexpr int numbers = 7;
  Index value[numbers + 5];
  if (count != numbers + addresses) {
    PyErr_Format(PyExc_TypeError, "expected %d arguments, got %zd", numbers + addresses, count);
    return false;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    value[i] = PyLong_AsLongLong(args[i]);
    if (value[i] == -1 && PyErr_Occurred()) return false;
  }
  *s = Shape{value[1], value[2], value[3], value[4], value[5], value[6], (value[0] & 1) != 0};
  *is_double = (value[0] & 2) != 0;
  for (int i = 0; i < addresses; ++i) address[i] = static_cast<std::intptr_t>(value[numbers + i]);
  return true;
}

template <typename T>
T* at(std::intptr_t address) {
  return reinterpret_cast<T*>(address);
}

template <typename Work>
PyObject* without_lock(const Work& work) {
  bool enough = true;
  Py_BEGIN_ALLOW_THREADS
  try {
    work();
  } catch (const std::exception&) {
    enough = false;
  }
  Py_END_ALLOW_THREADS
  if (!enough) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

PyObject* py_both_sides(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Shape s;
  bool is_double;
  std::intptr_t p[5];
  if (!parse(args, count, 5, &s, &is_double, p)) return nullptr;
  return without_lock([&] {
    if (is_double)
      both_sides(s, at<double>(p[0]), at<double>(p[1]), at<double>(p[2]), at<double>(p[3]),
                 at<double>(p[4]));
    else
      both_sides(s, at<float>(p[0]), at<float>(p[1]), at<float>(p[2]), at<float>(p[3]),
                 at<float>(p[4]));
  });
}

PyObject* py_add_product(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Shape s;
  bool is_double;
  std::intptr_t p[3];
  if (!parse(args, count, 3, &s, &is_double, p)) return nullptr;
  return without_lock([&] {
    if (is_double)
      add_product(s, at<double>(p[0]), at<double>(p[1]), at<double>(p[2]));
    else
      add_product(s, at<float>(p[0]), at<float>(p[1]), at<float>(p[2]));
  });
}

PyMethodDef methods[] = {
    {"both_sides", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_both_sides)),
     METH_FASTCALL, nullptr},
    {"add_product", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_add_product)),
     METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_streams", nullptr, 0, methods,
                      nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__streams() {
  PyObject* made = PyModule_Create(&module);
#ifdef _OPENMP
  PyObject* uses_threads = Py_True;
#else
  PyObject* uses_threads = Py_False;
#endif
  if (made != nullptr && PyModule_AddObjectRef(made, "USES_THREADS", uses_threads) != 0) {
    Py_DECREF(made);
    return nullptr;
  }
  return made;
}
