// Steps of a batch of matrices that are in any number of tensors.

#pragma once

#include <atomic>

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

  // Whether all matrices have stepped.
  template <typename T>
  bool take() const {
    std::atomic<bool> all{true};
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
        if (is_taken) {
          *counter += 1;
        } else {
          *skips.matrix<T>(i, 1) += 1;
          all.store(false, std::memory_order_relaxed);
        }
      }
    });
    return all.load();
  }
};

// Checks a step and its lists of tensors, and finds where the tensors are.
class StepTensors {
 public:
  StepTensors(const Reader& reader, PyObject* const* lists) : reader_(reader), lists_(lists) {}

  // False with an exception, or without one for what the reader leaves to torch's dispatcher.
  bool find(Step* step) {
    // The dispatcher makes lists of what is none.
    if (!std::all_of(lists_, lists_ + 5, [](PyObject* list) { return PyList_Check(list) != 0; }))
      return false;
    Layout x, grad;
    if (!read(0, 0, &x) || !read(1, 0, &grad)) return false;
    const Form form{std::max<Index>(0, x.kind), x.shape};
    if (x.kind < 0 || x.kind >= counter_kind || x.shape.size() < 2 || !is_stored(x))
      return refuse_layout("x", PyList_GetItem(lists_[0], 0), x, form, reader_);
    if (!is_stored(grad))
      return refuse_layout("grad", PyList_GetItem(lists_[1], 0), grad, form, reader_);

    const Sizes lead(x.shape.begin(), x.shape.end() - 2);
    const Index n = x.shape.end()[-2], p = x.shape.end()[-1], many = PyList_Size(lists_[0]);
    each_ = 1;
    for (const Index size : lead) each_ *= size;
    std::vector<Index>& numbers = step->numbers;
    if (!check_numbers(n, p, numbers[0], numbers[4]) || !has_parts(*step, many)) return false;

    const Index real = x.kind & double_bit, state = PyList_Size(lists_[2]);
    Layout second;
    if (state > many && !read(2, many, &second)) return false;
    const Sizes& of_second = second.shape;
    const bool is_scalar =
        of_second.size() > 1 && of_second.end()[-1] == 1 && of_second.end()[-2] == 1;
    Sizes one = lead;
    one.insert(one.end(), {1, 1});
    const bool by_columns = !grad.is_by_rows();
    // The first buffer is like the points; the others are real, a number for each entry or for all.
    const Form like{x.kind, x.shape, nullptr, by_columns};
    const Form others{real, is_scalar ? one : x.shape, nullptr, by_columns};
    if (!gather(0, 0, many, Form{x.kind, x.shape, &x.strides}, &step->x) ||
        !gather(1, 0, many, Form{x.kind, x.shape, &grad.strides}, &step->grad) ||
        !gather(3, 0, many, Form{counter_kind, lead}, &step->taken) ||
        !gather(4, 0, many, Form{real, lead}, &step->skipped) ||
        (state > 0 && !gather(2, 0, many, like, &step->first)) ||
        (state > many && !gather(2, many, many, others, &step->second)) ||
        (state > 2 * many && !gather(2, 2 * many, many, others, &step->third)))
      return false;
    const Index own[] = {x.kind, many * each_, n, p};
    numbers.insert(numbers.begin(), own, own + 4);
    numbers.insert(numbers.end() - 1, {!x.is_by_rows() + 2 * by_columns, is_scalar});
    return true;
  }

 private:
  bool read(Index list, Index i, Layout* found) {
    PyObject* tensor = PyList_GetItem(lists_[list], i);
    return tensor != nullptr && reader_.read(tensor, found, list > 2);
  }

  // Whether matrices are stored by rows, or by columns.
  static bool is_stored(const Layout& t) { return t.is_by_rows() || t.is_by_rows(true); }

  // Whether there are as many buffers and numbers as a rule has.
  bool has_parts(const Step& step, Index many) const {
    static const struct {
      const char *name, *buffers;
      Index fewest, most, numbers;
    } rules[] = {
        {"gradient", "0", 0, 0, 0}, {"momentum", "1", 1, 1, 3}, {"adam", "2 or 3", 2, 3, 3}};
    const auto& rule = rules[step.numbers[5]];
    const long long pieces = many, state = PyList_Size(lists_[2]), rest = rule.numbers,
                    numbers = static_cast<long long>(step.reals.size()) - 2;
    if (state != rule.fewest * many && state != rule.most * many)
      return refuse(PyUnicode_FromFormat(
          "`state` must be %s buffers of %lld tensors for '%s', got %lld tensors.", rule.buffers,
          pieces, rule.name, state));
    if (numbers != rest)
      return refuse(PyUnicode_FromFormat("`numbers` must be %lld for '%s', got %lld.", rest,
                                         rule.name, numbers));
    return true;
  }

  // Of a part of a list.
  bool gather(Index list, Index begin, Index many, const Form& form, std::vector<Index>* found) {
    static const char* const names[] = {"x", "grad", "state", "step", "skipped"};
    const Py_ssize_t count = PyList_Size(lists_[list]);
    if (list != 2 && count != many)
      return refuse(PyUnicode_FromFormat("`%s` must be of %lld matrices, got %zd tensors.",
                                         names[list], static_cast<long long>(many * each_), count));
    found->reserve(many);
    for (Index i = begin; i < begin + many; ++i) {
      if (!read(list, i, &layout_)) return false;
      if (!form.fits(layout_)) return refuse_one(names[list], list, i, form);
      found->push_back(layout_.address);
    }
    return true;
  }

  bool refuse_one(const char* name, Index list, Index i, const Form& form) {
    PyObject* tensor = PyList_GetItem(lists_[list], i);
    if (list > 1 || i == 0) {
      if (!Form{form.kind, form.shape}.fits(layout_))
        return refuse_layout(name, tensor, layout_, form, reader_);
      // What is made entry by entry of both has to be stored alike.
      return refuse(
          PyUnicode_FromString("`grad` must be stored by rows like the state, not by columns."));
    }
    PyObject* got = described("%R, %R and %R", tensor, layout_);
    Layout first;
    PyObject* expected = nullptr;
    if (got != nullptr && read(list, 0, &first))
      expected = described("%R, %R and %R", PyList_GetItem(lists_[list], 0), first);
    if (expected != nullptr)
      refuse(PyUnicode_FromFormat(
          "`%s` must be tensors of one shape, strides and dtype, got %U, and %U.", name, expected,
          got));
    Py_XDECREF(got);
    Py_XDECREF(expected);
    return false;
  }

  Reader reader_;
  PyObject* const* lists_;
  Layout layout_;
  Index each_ = 1;
};

}  // namespace
