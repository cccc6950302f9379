// The kernels as a module of Python, called with addresses.
//
// Nothing of torch or Python's private API is used, so that one build serves all their versions.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <exception>

#include "adam.h"
#include "momentum.h"
#include "products.h"
#include "retractions.h"
#include "sketches.h"
#include "step.h"
#include "turn.h"

namespace {

// Exactly `expected` integers.
bool parse(PyObject* const* args, Py_ssize_t count, Py_ssize_t expected, Index* value) {
  if (count != expected) {
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", expected, count);
    return false;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    value[i] = PyLong_AsLongLong(args[i]);
    if (value[i] == -1 && PyErr_Occurred()) return false;
  }
  return true;
}

// Bit 0: complex; bit 1: double precision.
Index parts_of(Index kind) { return 1 + (kind & 1); }
bool is_double(Index kind) { return (kind & 2) != 0; }

template <typename T>
T* at(Index address) {
  return reinterpret_cast<T*>(static_cast<std::intptr_t>(address));
}

template <typename Work>
PyObject* without_lock(const Work& work) {
  bool enough = true;
  Py_BEGIN_ALLOW_THREADS try { work(); } catch (const std::exception&) {
    enough = false;
  }
  Py_END_ALLOW_THREADS if (!enough) return PyErr_NoMemory();
  Py_RETURN_NONE;
}

// kind, b, n, m, l, r, threads; x, left, right, out_left, out_right
template <typename T>
void both_sides(const Index* v) {
  const Index b = v[1], n = v[2], m = v[3], l = v[4], r = v[5], parts = parts_of(v[0]);
  for_each_matrix<T>(b, n, parts * m, v[6], [&](Index i, Index last, Index threads) {
    Scratch<T> scratch;
    for (; i < last; ++i)
      sides_of_one(Shape{n, m, l, r, threads, parts == 2}, Rows<T>{at<T>(v[7]) + i * n * parts * m},
                   at<T>(v[8]) + i * l * parts * n, at<T>(v[9]) + i * r * parts * m,
                   at<T>(v[10]) + i * l * parts * m, at<T>(v[11]) + i * r * parts * n, &scratch);
  });
}

PyObject* py_both_sides(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Index v[12];
  if (!parse(args, count, 12, v)) return nullptr;
  return without_lock([&] { is_double(v[0]) ? both_sides<double>(v) : both_sides<float>(v); });
}

// kind, b, n, m, rank, threads; x, rows, factor
template <typename T>
void add_product(const Index* v) {
  const Index b = v[1], n = v[2], m = v[3], rank = v[4], parts = parts_of(v[0]);
  for_each_matrix<T>(b, n, parts * m, v[5], [&](Index i, Index last, Index threads) {
    Scratch<T> scratch;
    for (; i < last; ++i)
      add_product_to_one(Shape{n, m, rank, 0, threads, parts == 2}, at<T>(v[6]) + i * n * parts * m,
                         at<T>(v[7]) + i * rank * parts * n, at<T>(v[8]) + i * rank * parts * m,
                         &scratch);
  });
}

PyObject* py_add_product(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Index v[9];
  if (!parse(args, count, 9, v)) return nullptr;
  return without_lock([&] { is_double(v[0]) ? add_product<double>(v) : add_product<float>(v); });
}

// Bit 0 of `transposed`: x is stored as its transpose; bit 1: d is.
template <typename T>
View<T> x_of(Index address, Index transposed, Index offset) {
  return {at<T>(address) + offset, (transposed & 1) != 0};
}
template <typename T>
View<const T> d_of(Index address, Index transposed, Index offset) {
  return {at<T>(address) + offset, (transposed & 2) != 0};
}

// kind, b, n, p, k, sketch, transposed, threads; x, d, counters, rows, cores
template <typename T>
void sketch(const Index* v) {
  const Index b = v[1], n = v[2], p = v[3], k = v[4], parts = parts_of(v[0]), size = parts * n * p;
  for_each_matrix<T>(b, n, parts * p, v[7], [&](Index i, Index last, Index threads) {
    Sketcher<T> sketcher(n, p, parts, k, threads);
    for (; i < last; ++i) {
      const View<T> x = x_of<T>(v[8], v[6], i * size);
      sketcher.sketch(v[5], {x.data, x.transposed}, d_of<T>(v[9], v[6], i * size),
                      at<Index>(v[10])[i], at<double>(v[11]) + i * 2 * k * parts * n,
                      at<double>(v[12]) + i * 4 * k * k * parts);
    }
  });
}

PyObject* py_sketch(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Index v[13];
  if (!parse(args, count, 13, v)) return nullptr;
  return without_lock([&] { is_double(v[0]) ? sketch<double>(v) : sketch<float>(v); });
}

// kind, retraction, b, r; cores, deltas
PyObject* py_retract(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Index v[6];
  if (!parse(args, count, 6, v)) return nullptr;
  return without_lock([&] {
    const Index parts = parts_of(v[0]), size = parts * v[3] * v[3];
    const std::unique_ptr<Retraction> retract = retraction(v[1], v[3], parts);
    for (Index i = 0; i < v[2]; ++i)
      (*retract)(at<double>(v[4]) + i * size, at<double>(v[5]) + i * size);
  });
}

// kind, b, n, p, r, sweep, transposed, threads; x, rows, deltas, counters, active
template <typename T>
void turn(const Index* v) {
  const Index b = v[1], n = v[2], p = v[3], r = v[4], parts = parts_of(v[0]);
  for_each_matrix<T>(b, n, parts * p, v[7], [&](Index i, Index last, Index threads) {
    Turner<T> turner(n, p, parts, r, v[5], threads);
    for (; i < last; ++i) {
      bool* active = at<bool>(v[12]) + i;
      *active =
          *active && turner(x_of<T>(v[8], v[6], i * parts * n * p), at<T>(v[9]) + i * r * parts * n,
                            at<double>(v[10]) + i * r * r * parts, at<Index>(v[11])[i]);
    }
  });
}

PyObject* py_turn(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Index v[13];
  if (!parse(args, count, 13, v)) return nullptr;
  return without_lock([&] { is_double(v[0]) ? turn<double>(v) : turn<float>(v); });
}

// A batch in pieces of as many matrices each: a table of their addresses.
class Pieces {
 public:
  Pieces(Index table, Index pieces, Index b)
      : table_(at<const Index>(table)),
        matrices_(std::max<Index>(1, b / std::max<Index>(1, pieces))) {}

  template <typename T>
  T* matrix(Index i, Index size) const {
    return at<T>(table_[i / matrices_]) + i % matrices_ * size;
  }

 private:
  const Index* table_;
  Index matrices_;
};

// kind, b, n, p, k, sketch, retraction, transposed, sweep, threads, length; tables, each with its
// length: x, d, steps, skipped. Call along(stepper, x, d, i, taken, threads) for each matrix.
template <typename T, typename Along>
void step_each(const Index* v, const Along& along) {
  const Index b = v[1], n = v[2], p = v[3], parts = parts_of(v[0]), size = parts * n * p;
  const Pieces x(v[11], v[12], b), d(v[13], v[14], b), steps(v[15], v[16], b),
      skipped(v[17], v[18], b);
  for_each_matrix<T>(b, n, parts * p, v[9], [&](Index i, Index last, Index threads) {
    Stepper<T> stepper(n, p, parts, v[4], v[5], v[6], v[8], threads, v[28], *at<double>(v[29]));
    for (; i < last; ++i) {
      const View<T> point{x.matrix<T>(i, size), (v[7] & 1) != 0};
      Index* taken = steps.matrix<Index>(i, 1);
      if (along(&stepper, point, d.matrix<const T>(i, size), i, taken, threads))
        *taken += 1;
      else
        *skipped.matrix<T>(i, 1) += 1;
    }
  });
}

// What rules are called.
enum : Index { gradient_rule, momentum_rule, adam_rule };

// ...; rule, numbers; tables of what it keeps, each with its length: the first buffer, the second
// and the third, which may be empty; whether the second is one number for each matrix; the
// normalization, and the share of a direction below which a generator is rounding.
template <typename T>
void step(const Index* v) {
  const Index b = v[1], entries = v[2] * v[3], parts = parts_of(v[0]), rule = v[19];
  const double length = *at<double>(v[10]), *numbers = at<double>(v[20]);
  const Pieces first(v[21], v[22], b), second(v[23], v[24], b), third(v[25], v[26], b);
  const bool has_third = v[26] != 0, is_scalar = v[27] != 0, transposed = (v[7] & 2) != 0;
  const Index seconds = is_scalar ? 1 : entries;
  step_each<T>(
      v, [&](Stepper<T>* stepper, View<T> x, const T* g, Index i, Index* taken, Index threads) {
        if (rule == gradient_rule)
          return (*stepper)(x, View<const T>{g, transposed}, *taken, length);
        if (rule == momentum_rule) {
          MomentumMemory<T> memory({parts, entries, threads, g, first.matrix<T>(i, parts * entries),
                                    *taken, numbers[0], numbers[1], numbers[2] != 0});
          return (*stepper)(x, &memory, transposed, *taken, length);
        }
        AdamMemory<T> memory({parts, entries, threads, is_scalar, g,
                              first.matrix<T>(i, parts * entries), second.matrix<T>(i, seconds),
                              has_third ? third.matrix<T>(i, seconds) : nullptr, *taken, numbers[0],
                              numbers[1], numbers[2]});
        return (*stepper)(x, &memory, transposed, *taken, length);
      });
}

PyObject* py_step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Index v[30];
  if (!parse(args, count, 30, v)) return nullptr;
  return without_lock([&] { is_double(v[0]) ? step<double>(v) : step<float>(v); });
}

#define METHOD(name)                                                                             \
  {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_##name)), METH_FASTCALL, \
   nullptr}

PyMethodDef methods[] = {METHOD(both_sides),
                         METHOD(add_product),
                         METHOD(sketch),
                         METHOD(retract),
                         METHOD(turn),
                         METHOD(step),
                         {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__kernels() {
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
