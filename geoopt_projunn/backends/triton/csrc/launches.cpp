// Start many kernels on a GPU by one call of Python.
//
// CUDA itself is not needed to build this: Python says where its driver is in memory.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

namespace {

// As in cuda.h.
struct Attribute {
  alignas(8) int id;
  char unused[4];
  union {
    char most[64];
    int number;
  } value;
};

struct Config {
  unsigned grid[3], block[3], shared_memory;
  void* stream;
  Attribute* attributes;
  unsigned attributes_count;
};

using LaunchKernel = int (*)(const Config*, void* function, void** arguments, void** extra);

constexpr int kMayOverlap = 6;  // CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION

// A program is packed by launches.py, all of it 64-bit integers: a head, the launches, arguments,
// and which of these are values of a call.
struct Head {
  int64_t driver, launches, arguments, places;
};

struct Launch {
  int64_t function, grid[3], threads, shared_memory, may_overlap, first_argument;
};

struct Place {
  int64_t argument, value, offset;
};

class Program {
 public:
  // Whether the bytes are those of a program.
  bool read(const char* bytes, Py_ssize_t length) {
    if (length < static_cast<Py_ssize_t>(sizeof head_)) return false;
    std::memcpy(&head_, bytes, sizeof head_);
    if (!take(&bytes, &length, sizeof head_, 1)) return false;
    launches_ = reinterpret_cast<const Launch*>(bytes);
    if (!take(&bytes, &length, sizeof(Launch), head_.launches)) return false;
    const char* given = bytes;
    if (!take(&bytes, &length, sizeof(int64_t), head_.arguments)) return false;
    arguments_.resize(head_.arguments);
    std::memcpy(arguments_.data(), given, head_.arguments * sizeof(int64_t));
    places_ = reinterpret_cast<const Place*>(bytes);
    return take(&bytes, &length, sizeof(Place), head_.places) && length == 0;
  }

  // Whether there were values for all places.
  bool fill(const std::vector<int64_t>& values) {
    for (int64_t i = 0; i < head_.places; ++i) {
      const Place& place = places_[i];
      if (place.value < 0 || place.value >= static_cast<int64_t>(values.size())) return false;
      arguments_.at(place.argument) = values[place.value] + place.offset;
    }
    // A kernel knows how many arguments it has; a number of 32 bits is the first half of its 64.
    pointers_.reserve(arguments_.size());
    for (int64_t& argument : arguments_) pointers_.push_back(&argument);
    return true;
  }

  // Return the driver's error, 0 if there was none. Python's lock is not held: nothing may throw.
  int start(void* stream) noexcept {
    Attribute overlap{};
    overlap.id = kMayOverlap;
    overlap.value.number = 1;
    const auto launch = reinterpret_cast<LaunchKernel>(head_.driver);
    for (int64_t i = 0; i < head_.launches; ++i) {
      const Launch& own = launches_[i];
      Config config{};
      for (int axis = 0; axis < 3; ++axis) {
        config.grid[axis] = static_cast<unsigned>(own.grid[axis]);
        config.block[axis] = 1;
      }
      config.block[0] = static_cast<unsigned>(own.threads);
      config.shared_memory = static_cast<unsigned>(own.shared_memory);
      config.stream = stream;
      config.attributes = &overlap;
      config.attributes_count = own.may_overlap != 0;
      const int error = launch(&config, reinterpret_cast<void*>(own.function),
                               pointers_.data() + own.first_argument, nullptr);
      if (error != 0) return error;
    }
    return 0;
  }

 private:
  static bool take(const char** bytes, Py_ssize_t* length, size_t size, int64_t count) {
    if (count < 0 || static_cast<uint64_t>(count) > static_cast<uint64_t>(*length) / size)
      return false;
    *bytes += size * count;
    *length -= static_cast<Py_ssize_t>(size * count);
    return true;
  }

  Head head_;
  const Launch* launches_ = nullptr;
  const Place* places_ = nullptr;
  std::vector<int64_t> arguments_;
  std::vector<void*> pointers_;
};

bool parse(PyObject* tuple, std::vector<int64_t>* values) {
  const Py_ssize_t count = PyTuple_Size(tuple);
  if (count < 0) return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    // Addresses and handles may have the highest bit set.
    values->push_back(
        static_cast<int64_t>(PyLong_AsUnsignedLongLongMask(PyTuple_GetItem(tuple, i))));
    if (values->back() == -1 && PyErr_Occurred()) return false;
  }
  return true;
}

// A program, and its values, of which the last one is the stream.
PyObject* py_start(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) return PyErr_Format(PyExc_TypeError, "expected 2 arguments, got %zd", count);
  char* bytes;
  Py_ssize_t length;
  if (PyBytes_AsStringAndSize(args[0], &bytes, &length) != 0) return nullptr;
  try {
    std::vector<int64_t> values;
    Program program;
    if (!parse(args[1], &values)) return nullptr;
    if (values.empty() || !program.read(bytes, length) || !program.fill(values)) {
      PyErr_SetString(PyExc_ValueError, "the program and its values do not fit together");
      return nullptr;
    }
    int error;
    // The driver waits where its queue is full.
    Py_BEGIN_ALLOW_THREADS;
    error = program.start(reinterpret_cast<void*>(values.back()));
    Py_END_ALLOW_THREADS;
    return PyLong_FromLong(error);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
}

PyMethodDef methods[] = {
    {"start", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(py_start)), METH_FASTCALL,
     nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_launches", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__launches() { return PyModule_Create(&module); }
