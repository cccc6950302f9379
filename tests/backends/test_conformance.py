"""Whole steps: every backend takes those of the reference, refuses what it does, counts alike."""

import geoopt
import pytest
import torch

from geoopt_projunn import backends
from tests._asserts import assert_bit_equal, assert_unitary
from tests._matrices import DTYPES

from ._cases import ADAM, OTHERS, RULES, by_columns, each_other, stretched
from ._steps import (
    METHODS,
    assert_alike,
    bound,
    imaginary,
    of_rank_one,
    parameters,
    run,
    with_cancelling_entries,
    zero_in_part,
)

rules = pytest.mark.parametrize("rule", RULES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)
# One matrix and batches; whole vectors of a processor and rests; one chunk of rows and several.
shapes = pytest.mark.parametrize("shape", [(2, 2), (7, 7), (3, 24, 24), (2, 2, 5, 5), (301, 301)])
methods = pytest.mark.parametrize("method", METHODS)


@rules
@methods
@dtypes
@each_other
def test_steps_are_those_of_the_reference(name, dtype, method, rule):
    params = parameters(2, (3, 24, 24), dtype, method)
    actual, expected = run(name, params, rule), run("reference", params, rule)
    assert_alike(actual, expected, bound(dtype, (24, 24)))
    for p, start in zip(actual[0], params, strict=True):
        assert (p - start.detach()).abs().max() > 1e-4
        assert_unitary(p)


@rules
@shapes
@each_other
def test_so_they_are_for_odd_sizes_and_batches(name, shape, rule):
    params = parameters(1, shape, torch.complex128, "tangent, k = 3")
    actual, expected = run(name, params, rule), run("reference", params, rule)
    assert_alike(actual, expected, bound(torch.complex128, shape))


rectangles = pytest.mark.parametrize("shape", [(2, 30, 11), (11, 30), (9, 1), (140, 301)])


@rules
@rectangles
@each_other
def test_so_they_are_for_rectangles(name, shape, rule):
    params = parameters(2, shape, torch.complex128, "tangent, k = 3")
    actual, expected = run(name, params, rule), run("reference", params, rule)
    assert_alike(actual, expected, bound(torch.complex128, shape))
    for p in actual[0]:
        assert_unitary(p if shape[-2] > shape[-1] else p.mT)


@methods
@pytest.mark.parametrize("rule", ["gradient", "nesterov", "adam"])
@each_other
def test_so_they_are_for_rectangles_by_all_methods(name, rule, method):
    for shape in (2, 30, 11), (2, 11, 30):
        params = parameters(2, shape, torch.float32, method)
        actual, expected = run(name, params, rule), run("reference", params, rule)
        assert_alike(actual, expected, bound(torch.float32, shape))


@pytest.mark.parametrize("layout", [by_columns, stretched, torch.clone])
@pytest.mark.parametrize("rule", ["gradient", "momentum", "adam", "feedback"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@each_other
def test_so_they_are_however_matrices_lie_in_memory(name, dtype, rule, layout):
    params = parameters(2, (2, 24, 24), dtype, "tangent, k = 3")
    actual = run(name, params, rule, layout=layout)
    assert_alike(actual, run("reference", params, rule), bound(dtype, (24, 24)))


@pytest.mark.parametrize("spoil", [of_rank_one, zero_in_part])
@pytest.mark.parametrize("method", ["tangent, k = 3", "lsi", "column"])
@pytest.mark.parametrize("rule", ["gradient", "nesterov", "adam"])
@each_other
def test_so_they_are_for_zero_and_dependent_gradients(name, rule, method, spoil):
    params = parameters(2, (3, 24, 24), torch.float64, method)
    actual = run(name, params, rule, spoil=spoil)
    for p in actual[0]:
        assert_unitary(p)
    if not (method == "lsi" and spoil is of_rank_one):  # its basis is any that reaches the rank
        assert_alike(actual, run("reference", params, rule, spoil=spoil), 1e-10)


@pytest.mark.parametrize("spoil", [with_cancelling_entries, imaginary])
@methods
@dtypes
@each_other
def test_so_they_are_where_the_entries_of_a_gradient_cancel(name, dtype, method, spoil):
    """Rounding of what is zero decides nothing."""
    params = parameters(2, (3, 24, 24), dtype, method)
    actual, expected = (run(each, params, "gradient", spoil=spoil) for each in (name, "reference"))
    assert_alike(actual, expected, bound(dtype, (24, 24)))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@rules
@methods
@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
@pytest.mark.parametrize("name", backends.available())
def test_where_a_step_is_not_finite_nothing_changes(name, method, rule, bad):
    def spoil(grad, step, index):
        if step == 1 and index == 0:
            grad[1, 3, 4] = bad
        return grad

    params = parameters(2, (3, 24, 24), torch.float32, method)
    before = run(name, params, rule, steps=1)
    after = run(name, params, rule, steps=2, spoil=spoil)
    assert_bit_equal(after[0][0][1], before[0][0][1])
    for key, value in after[1][0].items():
        if key != "skipped":
            assert_bit_equal(value[1], before[1][0][key][1])
    assert after[1][0]["skipped"].tolist() == [0, 1, 0]
    assert after[1][0]["step"].tolist() == [2, 1, 2]
    assert not torch.equal(after[0][0][0], before[0][0][0])
    assert after[2].skipped_steps == 1


@pytest.mark.parametrize(
    ("rule", "dtype"),
    [
        ("momentum", torch.float32),
        *((rule, torch.float32) for rule in RULES if RULES[rule][0] is ADAM),
        *((rule, torch.complex64) for rule in RULES if RULES[rule][0] is ADAM),
    ],
)
@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
@pytest.mark.parametrize("name", backends.available())
def test_state_that_would_overflow_skips_the_step(name, dtype, rule):
    """Though the direction, divided by a second moment, would be finite."""

    def spoil(grad, step, index):
        # Below what overflows by itself: momentum adds up, second moments square.
        if rule == "momentum" or step == 1:
            grad[0, 1, 2] = torch.finfo(dtype).max * (0.9 if rule == "momentum" else 1e-12)
        return grad

    params = parameters(1, (2, 24, 24), dtype, "tangent")
    before = run(name, params, rule, steps=1, spoil=spoil)
    after = run(name, params, rule, steps=2, spoil=spoil)
    assert after[1][0]["skipped"][0] == 1
    for key, value in after[1][0].items():
        if key not in ("skipped", "step"):
            assert_bit_equal(value[0], before[1][0][key][0])


@rules
@methods
@pytest.mark.parametrize("name", backends.available())
def test_the_same_steps_have_the_same_bits(name, method, rule):
    params = parameters(2, (3, 24, 24), torch.float32, method)
    one, other = run(name, params, rule), run(name, params, rule)
    for p, q in zip(one[0], other[0], strict=True):
        assert_bit_equal(p, q)


@pytest.mark.parametrize("n", [24, 301])
@pytest.mark.parametrize("rule", ["gradient", "nesterov", "adam", "scalar amsgrad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.skipif("cpu" not in OTHERS, reason="the kernels were not built")
def test_of_kernels_neither_threads_nor_neighbours_change_a_bit(dtype, rule, n, threads):
    # As many as give several threads work.
    (p,) = parameters(1, (3 + 2**20 // n**2 // 4, n, n), dtype, "tangent, k = 3")
    whole = run("cpu", [p], rule, steps=1)
    for count in (2, 3):
        threads(count)
        other = run("cpu", [p], rule, steps=1)
        assert_bit_equal(other[0][0], whole[0][0])
        for key, value in other[1][0].items():
            assert_bit_equal(value, whole[1][0][key])
    threads(1)
    # The same matrices, each a parameter of its own, with the same gradients.
    alone = [geoopt.ManifoldParameter(x.clone(), manifold=p.manifold) for x in p.detach()]
    grads = torch.randn(p.shape, dtype=dtype, generator=torch.Generator().manual_seed(1)) / n
    kind, options = RULES[rule]
    optimizer = kind(alone, **options)
    for q, grad in zip(alone, grads, strict=True):
        q.grad = grad.clone()
    with backends.use("cpu"):
        optimizer.step()
    for q, expected in zip(alone, whole[0][0], strict=True):
        assert_bit_equal(q.detach(), expected)
