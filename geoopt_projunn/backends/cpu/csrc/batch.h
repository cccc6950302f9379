// Steps of a batch of matrices that are in any number of tensors.

#pragma once

#include "adam.h"
#include "momentum.h"
#include "step.h"
#include "tensors.h"

namespace {

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

// The first tensor of a list that is not as it has to be, as a tuple: the number of its list in a
// call of `step`, its own, -1 if their count is wrong, and what its shape and kind have to be.
PyObject* misfit(Index list, Index number, const Form& form) {
  PyObject* shape = PyTuple_New(form.shape.size());
  for (std::size_t i = 0; shape != nullptr && i < form.shape.size(); ++i)
    if (PyTuple_SetItem(shape, i, PyLong_FromLongLong(form.shape[i])) != 0) return nullptr;
  return shape == nullptr
             ? nullptr
             : Py_BuildValue("LLNL", static_cast<long long>(list), static_cast<long long>(number),
                             shape, static_cast<long long>(form.kind));
}

// Checks the lists of tensors of a step, and finds where the tensors are.
class StepTensors {
 public:
  StepTensors(PyObject* dtypes, PyObject* const* lists) : reader_(dtypes), lists_(lists) {}

  // What is wrong, nullptr with an exception, or None.
  PyObject* find(Step* step) {
    Layout x, grad;
    if (!first(0, &x) || !first(1, &grad)) return nullptr;
    Index of_points = 0, of_grads = 0;
    Form form{x.kind, x.shape};
    if (x.kind < 0 || x.kind >= counter_kind || x.shape.size() < 2 || !stored(x, &of_points))
      return misfit(0, 0, form);
    if (!stored(grad, &of_grads)) return misfit(1, 0, form);
    const Index turned = of_points + 2 * of_grads;

    const Sizes lead(x.shape.begin(), x.shape.end() - 2);
    const Index n = x.shape.end()[-2], p = x.shape.end()[-1], many = PyList_Size(lists_[0]);
    Index each = 1;
    for (const Index size : lead) each *= size;
    const Index real = x.kind & double_bit;
    Sizes one = lead;
    one.insert(one.end(), {1, 1});
    const bool is_scalar = PyList_Size(lists_[4]) > many && number_of_each(many, &layout_);
    if (PyErr_Occurred()) return nullptr;

    if (!gather(0, 0, many, Form{x.kind, x.shape, &x.strides}, &step->x) ||
        !gather(1, 0, many, Form{x.kind, x.shape, &grad.strides}, &step->grad) ||
        !gather(2, 0, many, Form{counter_kind, lead}, &step->taken) ||
        !gather(3, 0, many, Form{real, lead}, &step->skipped))
      return wrong_;
    // The first buffer is like the points; the others are real, a number for each entry or for all.
    std::vector<Index>* const buffers[] = {&step->first, &step->second, &step->third};
    for (Index i = 0; i < 3 && i * many < PyList_Size(lists_[4]); ++i) {
      const Form of_buffer{i == 0 ? x.kind : real, i > 0 && is_scalar ? one : x.shape, nullptr,
                           of_grads != 0};
      if (!gather(4, i * many, many, of_buffer, buffers[i])) return wrong_;
    }
    const Index own[] = {x.kind, many * each, n, p};
    step->numbers.insert(step->numbers.begin(), own, own + 4);
    step->numbers.insert(step->numbers.end() - 1, {turned, Index{is_scalar}});
    Py_RETURN_NONE;
  }

 private:
  bool first(Index list, Layout* found) {
    PyObject* tensor = PyList_GetItem(lists_[list], 0);
    return tensor != nullptr && reader_.read(tensor, found);
  }

  // Whether matrices are stored by rows, or by columns.
  static bool stored(const Layout& t, Index* by_columns) {
    *by_columns = !t.is_plain();
    return t.is_plain() || t.is_plain(true);
  }

  // Whether the second buffer has one number for each matrix.
  bool number_of_each(Index many, Layout* second) {
    if (!reader_.read(PyList_GetItem(lists_[4], many), second)) return false;
    const Sizes& shape = second->shape;
    return shape.size() > 1 && shape.end()[-1] == 1 && shape.end()[-2] == 1;
  }

  // Of a part of a list; false with `wrong_` set.
  bool gather(Index list, Index begin, Index many, const Form& form, std::vector<Index>* found) {
    if (list < 4 && PyList_Size(lists_[list]) != many) {
      wrong_ = misfit(list, -1, form);
      return false;
    }
    found->reserve(many);
    for (Index i = begin; i < begin + many; ++i) {
      PyObject* tensor = PyList_GetItem(lists_[list], i);
      if (tensor == nullptr || !reader_.read(tensor, &layout_)) {
        wrong_ = nullptr;
        return false;
      }
      if (!form.fits(layout_)) {
        wrong_ = misfit(list, i, form);
        return false;
      }
      found->push_back(layout_.address);
    }
    return true;
  }

  Reader reader_;
  PyObject* const* lists_;
  Layout layout_;
  PyObject* wrong_ = nullptr;
};

}  // namespace
