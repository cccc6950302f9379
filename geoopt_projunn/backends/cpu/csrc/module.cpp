// The kernels as a module of Python, called with addresses, whole steps with tensors.
//
// Nothing of torch or Python's private API is used, so that one build serves all their versions.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "batch.h"
#include "products.h"
#include "retractions.h"
#include "sketches.h"
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
  if (!parse(args, count, 13, v) || !check_numbers(v[2], v[3], v[4], 0)) return nullptr;
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
  if (!parse(args, count, 13, v) || !check_numbers(v[2], v[3], 1, v[5])) return nullptr;
  return without_lock([&] { is_double(v[0]) ? turn<double>(v) : turn<float>(v); });
}

// dtypes, integers (k, sketch, retraction, normalization, sweep, rule, threads), reals; lists of
// points, gradients, buffers and both counters; and, where torch's dispatcher was not asked, the
// argument of `Reader`. None for what needs the dispatcher, else whether all matrices have stepped.
PyObject* py_step(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 8 && count != 9)
    return PyErr_Format(PyExc_TypeError, "expected 8 or 9 arguments, got %zd", count);
  Step step;
  if (!parse(args[1], PyLong_AsLongLong, &step.numbers)) return nullptr;
  if (!parse(args[2], PyFloat_AsDouble, &step.reals)) return nullptr;
  try {
    const Reader reader(args[0], count == 9 ? args[8] : nullptr);
    if (!StepTensors(reader, args + 3).find(&step)) {
      if (PyErr_Occurred()) return nullptr;
      Py_RETURN_NONE;
    }
  } catch (const std::exception&) {
    return PyErr_NoMemory();
  }
  bool all = false;
  PyObject* none = without_lock(
      [&] { all = is_double(step.numbers[0]) ? step.take<double>() : step.take<float>(); });
  Py_XDECREF(none);
  return none == nullptr ? nullptr : PyBool_FromLong(all);
}

// dtypes, tensor, name, shape, dtype; where a tensor is, that has to be contiguous and like this
PyObject* py_address(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 5) return PyErr_Format(PyExc_TypeError, "expected 5 arguments, got %zd", count);
  try {
    Reader reader(args[0]);
    Layout found;
    Form form{reader.kind_of(args[4]), {}};
    if (!sizes(args[3], &form.shape) || !reader.read(args[1], &found)) return nullptr;
    if (form.fits(found)) return PyLong_FromLongLong(found.address);
    if (PyObject* name = PyUnicode_AsUTF8String(args[2])) {
      refuse_layout(PyBytes_AsString(name), args[1], found, form, reader);
      Py_DECREF(name);
    }
  } catch (const std::exception&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

// bytes; of the widest vectors to be made use of from now on. Those before.
PyObject* py_use_vectors(PyObject*, PyObject* const* args, Py_ssize_t count) {
  Index bytes;
  if (!parse(args, count, 1, &bytes)) return nullptr;
  const int before = vector_bytes;
  if ((bytes != 16 && bytes != 32 && bytes != 64) || bytes > widest_vectors())
    return PyErr_Format(PyExc_ValueError,
                        "vectors must have 16, 32 or 64 bytes, and at most the %d of this "
                        "processor, got %lld",
                        widest_vectors(), static_cast<long long>(bytes));
  vector_bytes = static_cast<int>(bytes);
  return PyLong_FromLong(before);
}

#define METHOD(name)                                                                             \
  {#name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_##name)), METH_FASTCALL, \
   nullptr}

PyMethodDef methods[] = {METHOD(both_sides), METHOD(add_product), METHOD(sketch),
                         METHOD(retract),    METHOD(turn),        METHOD(step),
                         METHOD(address),    METHOD(use_vectors), {nullptr, nullptr, 0, nullptr}};

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
  refused = PyErr_NewExceptionWithDoc("geoopt_projunn.backends.cpu.kernels.Refused",
                                      "Tensors that the kernels cannot take; nothing has changed.",
                                      PyExc_ValueError, nullptr);
  if (made == nullptr || refused == nullptr ||
      PyModule_AddObjectRef(made, "USES_THREADS", uses_threads) != 0 ||
      PyModule_AddObjectRef(made, "Refused", refused) != 0) {
    Py_XDECREF(made);
    return nullptr;
  }
  return made;
}
