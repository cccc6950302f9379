// The kernels as a module of Python, called with addresses.
//
// Nothing of torch or Python's private API is used, so that one build serves all their versions.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

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

// All of a list or tuple; `of` is PyLong_AsLongLong or PyFloat_AsDouble.
template <typename T, typename Of>
bool parse(PyObject* list, Of of, std::vector<T>* values) {
  const Py_ssize_t count = PySequence_Size(list);
  try {
    values->reserve(std::max<Py_ssize_t>(0, count));
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    return false;
  }
  for (Py_ssize_t i = 0; i < count; ++i) {
    PyObject* item = PySequence_GetItem(list, i);
    if (item == nullptr) return false;
    values->push_back(of(item));
    Py_DECREF(item);
    if (values->back() == -1 && PyErr_Occurred()) return false;
  }
  return count >= 0;
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

// kind, b, r, retraction, threads; cores, deltas
PyObject* py_retract(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Index v[7];
  if (!parse(args, count, 7, v)) return nullptr;
  return without_lock([&] {
    const Index r = v[2], parts = parts_of(v[0]), size = parts * r * r;
    const Index bytes = v[1] * size * static_cast<Index>(sizeof(double));
    in_parts(v[1], std::min(v[4], 1 + bytes / bytes_for_a_thread), [&](Index i, Index last) {
      const std::unique_ptr<Retraction> retract = retraction(v[3], r, parts);
      for (; i < last; ++i) (*retract)(at<double>(v[5]) + i * size, at<double>(v[6]) + i * size);
    });
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

// A batch in pieces of as many matrices each.
class Pieces {
 public:
  Pieces(const std::vector<Index>& addresses, Index b)
      : addresses_(addresses), matrices_(b / std::max<Index>(1, addresses.size())) {}

  template <typename T>
  T* matrix(Index i, Index size) const {
    return at<T>(addresses_[i / matrices_]) + i % matrices_ * size;
  }

 private:
  const std::vector<Index>& addresses_;
  Index matrices_;
};

// What rules are called.
enum : Index { gradient_rule, momentum_rule, adam_rule };

// A step of b matrices; lists of addresses, those of buffers that a rule does not keep are empty.
struct Step {
  // Kind, b, n, p, k, sketch, retraction, normalization, sweep, rule, transposed as in `x_of` and
  // `d_of`, whether the second buffer is one number for each matrix, threads.
  std::vector<Index> numbers;
  // Its length, the share of a direction below which a generator is rounding, and the rule's own.
  std::vector<double> reals;
  std::vector<Index> x, grad, taken, skipped, first, second, third;

  template <typename T>
  void take() const {
    const Index *v = numbers.data(), b = v[1], n = v[2], p = v[3], parts = parts_of(v[0]);
    const Index rule = v[9], entries = n * p, size = parts * entries;
    const bool by_columns = (v[10] & 2) != 0, is_scalar = v[11] != 0;
    const Index seconds = is_scalar ? 1 : entries;
    const Pieces xs(x, b), grads(grad, b), counters(taken, b), skips(skipped, b), firsts(first, b),
        squares(second, b), largest(third, b);
    const double length = reals[0], *own = reals.data() + 2;
    for_each_matrix<T>(b, n, parts * p, v[12], [&](Index i, Index last, Index threads) {
      Stepper<T> stepper(n, p, parts, v[4], v[5], v[6], v[8], threads, v[7], reals[1]);
      for (; i < last; ++i) {
        const View<T> point{xs.matrix<T>(i, size), (v[10] & 1) != 0};
        const T* g = grads.matrix<const T>(i, size);
        Index* counter = counters.matrix<Index>(i, 1);
        bool is_taken;
        if (rule == gradient_rule) {
          is_taken = stepper(point, View<const T>{g, by_columns}, *counter, length);
        } else if (rule == momentum_rule) {
          MomentumMemory<T> memory({parts, entries, threads, g, firsts.matrix<T>(i, size), *counter,
                                    own[0], own[1], own[2] != 0});
          is_taken = stepper(point, &memory, by_columns, *counter, length);
        } else {
          AdamMemory<T> memory({parts, entries, threads, is_scalar, g, firsts.matrix<T>(i, size),
                                squares.matrix<T>(i, seconds),
                                third.empty() ? nullptr : largest.matrix<T>(i, seconds), *counter,
                                own[0], own[1], own[2]});
          is_taken = stepper(point, &memory, by_columns, *counter, length);
        }
        if (is_taken)
          *counter += 1;
        else
          *skips.matrix<T>(i, 1) += 1;
      }
    });
  }
};

// What a Step has, in its order, without the lists that are empty.
PyObject* py_step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count < 6 || count > 9)
    return PyErr_Format(PyExc_TypeError, "expected 6 to 9 arguments, got %zd", count);
  Step step;
  std::vector<Index>* const lists[] = {&step.x,     &step.grad,   &step.taken, &step.skipped,
                                       &step.first, &step.second, &step.third};
  if (!parse(args[0], PyLong_AsLongLong, &step.numbers)) return nullptr;
  if (!parse(args[1], PyFloat_AsDouble, &step.reals)) return nullptr;
  for (Py_ssize_t i = 2; i < count; ++i)
    if (!parse(args[i], PyLong_AsLongLong, lists[i - 2])) return nullptr;
  return without_lock(
      [&] { is_double(step.numbers[0]) ? step.take<double>() : step.take<float>(); });
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
