// Tensors of torch as they lie in memory, without its headers.
//
// They are read through DLPack's exchange between libraries in C where their type offers it (torch
// from 2.10 on), else by their attributes, which takes ten times as long.

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lanes.h"

namespace {

using Sizes = std::vector<Index>;

// Of DLPack 1: a tensor, and the functions that a type offers.
struct PackedTensor {
  void* data;
  std::int32_t device, device_number, dims;
  std::uint8_t code, bits;
  std::uint16_t lanes;
  std::int64_t *shape, *strides;
  std::uint64_t offset;
};
struct Exchange {
  std::uint32_t major, minor;
  void* before;
  void* of_owned[3];
  int (*pack)(void* tensor, PackedTensor* packed);
};

// What dtypes are called: those of points (bit 0: complex; bit 1: double precision), int64, bool.
enum : Index {
  complex_bit = 1,
  double_bit = 2,
  counter_kind = 4,
  flag_kind = 5,
  unknown_kind = -1
};

Index parts_of(Index kind) { return 1 + (kind & complex_bit); }
bool is_double(Index kind) { return (kind & double_bit) != 0; }

template <typename T>
T* at(Index address) {
  return reinterpret_cast<T*>(static_cast<std::intptr_t>(address));
}

struct Layout {
  Index address, kind;
  bool on_cpu;
  Sizes shape, strides;

  // Whether the entries lie in memory in their order, but for the last two dimensions if `turned`.
  bool is_by_rows(bool turned = false) const {
    Index expected = 1;
    const Index dims = static_cast<Index>(shape.size());
    if (std::count(shape.begin(), shape.end(), 0) > 0) return true;
    for (Index i = dims - 1; i >= 0; --i) {
      const Index j = turned && dims >= 2 && i >= dims - 2 ? 2 * dims - 3 - i : i;
      if (shape[j] != 1 && strides[j] != expected) return false;
      expected *= shape[j];
    }
    return true;
  }
};

bool sizes(PyObject* tuple, Sizes* values) {
  values->clear();
  for (Py_ssize_t i = 0; i < PyTuple_Size(tuple); ++i)
    values->push_back(PyLong_AsLongLong(PyTuple_GetItem(tuple, i)));
  return !PyErr_Occurred();
}

class Reader {
 public:
  // Torch's dtypes in the order of their kinds. With the `__torch_dispatch__` of torch.Tensor what
  // needs torch's dispatcher is not read: types that have their own, lazy tensors, other devices.
  explicit Reader(PyObject* dtypes, PyObject* dispatch = nullptr)
      : dtypes_(dtypes), dispatch_(dispatch) {}

  PyObject* dtype_of(Index kind) const { return PyTuple_GetItem(dtypes_, kind); }
  Index kind_of(PyObject* dtype) const {
    for (Py_ssize_t i = 0; i < PyTuple_Size(dtypes_); ++i)
      if (PyTuple_GetItem(dtypes_, i) == dtype) return i;
    return unknown_kind;
  }

  // False with an exception of Python, or without one for what needs torch's dispatcher. To ask
  // whether a tensor is negated lazily takes as long as to read it: nobody does that to counters.
  bool read(PyObject* tensor, Layout* found, bool is_counter = false) {
    static PyObject* const is_neg = PyUnicode_InternFromString("is_neg");
    static PyObject* const is_conj = PyUnicode_InternFromString("is_conj");
    if (Py_TYPE(tensor) != type_ && !know(Py_TYPE(tensor))) return false;
    if (dispatch_ != nullptr && (!is_bare_ || (!is_counter && is_true(tensor, is_neg))))
      return false;
    if (!(exchange_ == nullptr ? by_attributes(tensor, found) : packed(tensor, found)))
      return false;
    if (dispatch_ != nullptr && !found->on_cpu) return false;
    const bool is_complex =
        found->kind >= 0 && found->kind < counter_kind && (found->kind & complex_bit) != 0;
    return dispatch_ == nullptr || !is_complex || !is_true(tensor, is_conj);
  }

 private:
  static bool is_true(PyObject* tensor, PyObject* question) {
    PyObject* answer = PyObject_CallMethodObjArgs(tensor, question, nullptr);
    Py_XDECREF(answer);
    return answer != Py_False;
  }

  bool know(PyTypeObject* type) {
    type_ = type;
    exchange_ = nullptr;
    PyObject* object = reinterpret_cast<PyObject*>(type);
    if (dispatch_ != nullptr) {
      PyObject* own = PyObject_GetAttrString(object, "__torch_dispatch__");
      Py_XDECREF(own);
      is_bare_ = own == dispatch_;
      if (own == nullptr) return false;
    }
    PyObject* offered = PyObject_GetAttrString(object, "__dlpack_c_exchange_api__");
    if (offered == nullptr) {
      PyErr_Clear();
      return true;
    }
    auto* exchange = static_cast<Exchange*>(PyCapsule_GetPointer(offered, "dlpack_exchange_api"));
    Py_DECREF(offered);
    if (exchange == nullptr) return false;
    if (exchange->major == 1 && exchange->pack != nullptr) exchange_ = exchange;
    return true;
  }

  bool packed(PyObject* tensor, Layout* found) const {
    PackedTensor t;
    if (exchange_->pack(tensor, &t) != 0) {
      // Such as of tensors without memory.
      if (dispatch_ != nullptr) PyErr_Clear();
      return false;
    }
    found->on_cpu = t.device == 1;
    found->address =
        static_cast<Index>(reinterpret_cast<std::intptr_t>(t.data)) + static_cast<Index>(t.offset);
    found->shape.assign(t.shape, t.shape + t.dims);
    found->strides.assign(t.strides, t.strides + t.dims);
    found->kind = unknown_kind;
    if (t.code == 2 || t.code == 5) {  // real, complex
      const int bits = t.code == 2 ? t.bits : t.bits / 2;
      if (bits == 32 || bits == 64)
        found->kind = (t.code == 5 ? complex_bit : 0) | (bits == 64 ? double_bit : 0);
    } else if (t.code == 0 && t.bits == 64) {
      found->kind = counter_kind;
    } else if (t.code == 6) {
      found->kind = flag_kind;
    }
    return true;
  }

  bool by_attributes(PyObject* tensor, Layout* found) const {
    PyObject* shape = PyObject_GetAttrString(tensor, "shape");
    PyObject* strides = PyObject_CallMethod(tensor, "stride", nullptr);
    PyObject* dtype = PyObject_GetAttrString(tensor, "dtype");
    PyObject* address = PyObject_CallMethod(tensor, "data_ptr", nullptr);
    PyObject* on_cpu = PyObject_GetAttrString(tensor, "is_cpu");
    const bool is_read = shape != nullptr && strides != nullptr && dtype != nullptr &&
                         address != nullptr && on_cpu != nullptr && sizes(shape, &found->shape) &&
                         sizes(strides, &found->strides);
    if (is_read) {
      found->address = PyLong_AsLongLong(address);
      found->kind = kind_of(dtype);
      found->on_cpu = on_cpu == Py_True;
    }
    for (PyObject* own : {shape, strides, dtype, address, on_cpu}) Py_XDECREF(own);
    return is_read && !PyErr_Occurred();
  }

  PyObject *dtypes_, *dispatch_;
  bool is_bare_ = true;
  PyTypeObject* type_ = nullptr;
  const Exchange* exchange_ = nullptr;
};

// What all tensors of a list have to be; without strides they have to be plain.
struct Form {
  Index kind;
  Sizes shape;
  const Sizes* strides = nullptr;
  bool turned = false;

  bool fits(const Layout& t) const {
    return t.kind == kind && t.shape == shape &&
           (strides == nullptr ? t.is_by_rows(turned) : t.strides == *strides);
  }
};

// What is raised for tensors that the kernels cannot take, when nothing has changed yet.
PyObject* refused = nullptr;

// Of a new reference to `text`, which may be nullptr.
bool refuse(PyObject* text) {
  if (text != nullptr) PyErr_SetObject(refused, text);
  Py_XDECREF(text);
  return false;
}

PyObject* tuple_of(const Sizes& values) {
  PyObject* tuple = PyTuple_New(static_cast<Py_ssize_t>(values.size()));
  for (std::size_t i = 0; tuple != nullptr && i < values.size(); ++i)
    PyTuple_SetItem(tuple, static_cast<Py_ssize_t>(i), PyLong_FromLongLong(values[i]));
  return tuple;
}

// "shape, strides and dtype" of a tensor, with words before and between them.
PyObject* described(const char* words, PyObject* tensor, const Layout& t) {
  PyObject *shape = tuple_of(t.shape), *strides = tuple_of(t.strides);
  PyObject* dtype = PyObject_GetAttrString(tensor, "dtype");
  PyObject* text = nullptr;
  if (shape != nullptr && strides != nullptr && dtype != nullptr)
    text = PyUnicode_FromFormat(words, shape, strides, dtype);
  for (PyObject* own : {shape, strides, dtype}) Py_XDECREF(own);
  return text;
}

bool refuse_layout(const char* name, PyObject* tensor, const Layout& t, const Form& form,
                   const Reader& reader) {
  PyObject* got = described("%R, strides %R and %R", tensor, t);
  PyObject* shape = tuple_of(form.shape);
  if (got != nullptr && shape != nullptr)
    refuse(
        PyUnicode_FromFormat("`%s` must be contiguous, of shape %R and %R, got shape %U; use "
                             "`LowRankUnitary` and the optimizers, which take all.",
                             name, shape, reader.dtype_of(form.kind), got));
  Py_XDECREF(got);
  Py_XDECREF(shape);
  return false;
}

// Refuses wide matrices, and what a step of n x p matrices cannot have: rank, columns.
bool check_numbers(Index n, Index p, Index k, Index sweep) {
  const long long rows = n, columns = p, most = std::min(p, n / 2), rank = k, swept = sweep;
  if (p > n)
    return refuse(PyUnicode_FromFormat(
        "`x` must have as many rows as columns or more, got %lld x %lld.", rows, columns));
  if (k < 1 || k > most)
    return refuse(PyUnicode_FromFormat("`k` must be between 1 and min(p, n // 2) = %lld, got %lld.",
                                       most, rank));
  if (sweep < 0 || sweep > p)
    return refuse(
        PyUnicode_FromFormat("`sweep` must be between 0 and p = %lld, got %lld.", columns, swept));
  return true;
}

}  // namespace
