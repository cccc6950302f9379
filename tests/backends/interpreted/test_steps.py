"""Interpreted kernels do what the reference does."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.backends.spec import StepSpec
from tests._asserts import assert_bit_equal, assert_unitary, assert_within
from tests._matrices import eps, unitary
from tests.backends._cases import by_columns, stretched
from tests.backends._steps import (
    assert_alike,
    bound,
    imaginary,
    of_rank_one,
    parameters,
    run,
    with_cancelling_entries,
    zero_in_part,
)

from ._step import C64, C128, F32, F64, step

pytestmark = [
    pytest.mark.usefixtures("spoilt_memory"),
    # numpy warns of what is not finite, which kernels pass on.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


@pytest.mark.parametrize(
    ("small", "rule", "dtype", "method"),
    [
        ("many kernels", "gradient", F32, "tangent"),
        ("many kernels", "gradient", C128, "lsi"),
        ("many kernels", "maximize", F64, "cayley"),
        ("many kernels", "momentum", C64, "tangent, k = 3"),
        ("many kernels", "nesterov", F64, "polar"),
        ("many kernels", "adam", C64, "tangent"),
        ("many kernels", "adam", F32, "tangent, k = 3"),
        ("many kernels", "amsgrad", C128, "tangent, k = 3"),
        ("many kernels", "scalar", F32, "tangent, k = 3"),
        ("many kernels", "scalar amsgrad", C64, "tangent"),
        # The one kernel calls the others: each sketch, retraction and rule once.
        ("one kernel", "gradient", F64, "lsi"),
        ("one kernel", "momentum", F32, "cayley"),
        ("one kernel", "nesterov", F64, "polar"),
        ("one kernel", "amsgrad", C128, "tangent, k = 3"),
        ("one kernel", "scalar amsgrad", C64, "tangent"),
        # What the kernels leave to the reference.
        ("many kernels", "feedback", F64, "tangent"),
        ("many kernels", "gradient", F32, "column"),
        ("many kernels", "gradient", F32, "full rank"),
    ],
    indirect=["small"],
)
@pytest.mark.usefixtures("small")
def test_steps_are_those_of_the_reference(rule, dtype, method):
    params = parameters(2, (24, 24), dtype, method)
    actual, expected = (run(name, params, rule, steps=2) for name in ("triton", "reference"))
    assert_alike(actual, expected, bound(dtype, (24, 24)))
    for p, start in zip(actual[0], params, strict=True):
        assert (p - start.detach()).abs().max() > 1e-4
        assert_unitary(p)


@pytest.mark.parametrize(
    ("shape", "dtype", "spec", "rule", "taken"),
    [
        ((2, 2), F64, StepSpec(1, "tangent", "exponential", 1), "gradient", 0),
        ((3, 64, 64), C64, StepSpec(2, "tangent", "exponential", 8), "scalar", 7),
        ((64, 61), F64, StepSpec(16, "tangent", "polar", 2), "nesterov", 0),
        ((61, 37), F64, StepSpec(1, "tangent", "cayley", 2), "amsgrad", 2**40),
        ((7, 7), C128, StepSpec(3, "tangent", "polar", 7), "gradient", 2**40 + 1),
        ((2, 2, 5, 5), F64, StepSpec(2, "lsi", "cayley", 0), "gradient", 5),
        # Several columns and rows of tiles.
        ((80, 80), F64, StepSpec(1, "tangent", "exponential", 3), "adam", 79),
        ((70, 40), C128, StepSpec(2, "tangent", "cayley", 1), "scalar", 1_000_003),
        ((130, 70), F64, StepSpec(3, "lsi", "polar", 2), "amsgrad", 8),
        ((2, 40, 33), C128, StepSpec(16, "tangent", "exponential", 8), "nesterov", 8),
        # Twice the generator, and no sweep.
        ((40, 17), F64, StepSpec(1, "tangent", "polar", 0, 2.0), "gradient", 3),
    ],
)
def test_so_they_are_for_any_size(shape, dtype, spec, rule, taken):
    n = shape[-2]
    x = unitary(*shape[:-2], n, n, dtype=dtype)[..., : shape[-1]].contiguous()
    grad = torch.randn(shape, dtype=dtype) / n
    actual, of_kernels = step("triton", x, grad, spec, taken, rule)
    expected, buffers = step("reference", x, grad, spec, taken, rule)
    assert_within(actual, expected, bound(dtype, shape))
    assert (actual - x).abs().max() > 1e-5
    for key, value in buffers.items():
        assert_within(of_kernels[key], value, 10 * eps(dtype))
    assert (of_kernels["step"] == taken + 1).all()


@pytest.mark.parametrize(
    ("layout", "rule"),
    [
        (by_columns, "momentum"),
        (stretched, "gradient"),
        (torch.conj, "adam"),
        (torch.clone, "adam"),
    ],
)
def test_so_they_are_however_matrices_lie_in_memory(layout, rule):
    (p,) = parameters(1, (9, 9), C64, "tangent")
    if layout is torch.conj:
        # Of the point alone: an optimizer takes no such parameters.
        x, grad = torch.conj(p.detach()), torch.randn(9, 9, dtype=C64)
        spec = StepSpec(1, "tangent", "exponential", 1)
        actual, expected = (step(name, x, grad, spec)[0] for name in ("triton", "reference"))
        assert_within(actual, expected, bound(C64, (9, 9)))
        return
    actual, expected = (
        run(name, [p], rule, steps=1, layout=layout) for name in ("triton", "reference")
    )
    assert_alike(actual, expected, bound(C64, (9, 9)))


@pytest.mark.parametrize(
    ("spoil", "k"),
    [
        (of_rank_one, 3),
        (zero_in_part, 1),
        (zero_in_part, 3),
        (with_cancelling_entries, 1),
        (with_cancelling_entries, 3),
        (imaginary, 1),
        (imaginary, 3),
    ],
)
def test_so_they_are_for_zero_and_dependent_gradients(spoil, k):
    dtype = C128 if spoil is imaginary else F64
    params = parameters(2, (12, 12), dtype, "tangent" if k == 1 else "tangent, k = 3")
    actual, expected = (
        run(name, params, "gradient", steps=2, spoil=spoil) for name in ("triton", "reference")
    )
    assert_alike(actual, expected, 1e-10)
    for p in actual[0]:
        assert_unitary(p)


@pytest.mark.usefixtures("small")
def test_neither_repetition_nor_neighbours_change_a_bit():
    x, grad = unitary(3, 40, 40, dtype=F32), torch.randn(3, 40, 40)
    spec = StepSpec(2, "tangent", "cayley", 1)
    whole, of_whole = step("triton", x, grad, spec, rule="scalar")
    alone, of_alone = step("triton", x[1:2], grad[1:2], spec, rule="scalar")
    assert_bit_equal(alone, whole[1:2])
    for key, value in of_alone.items():
        assert_bit_equal(value, of_whole[key][1:2])
    assert_bit_equal(step("triton", x[1:2], grad[1:2], spec, rule="scalar")[0], alone)


def test_a_learning_rate_may_be_a_tensor_of_any_precision():
    x, grad = unitary(6, 6), torch.randn(6, 6, dtype=F64)
    spec = StepSpec(1, "tangent", "exponential", 1)
    expected, _ = step("reference", x, grad, spec, lr=0.5)
    for lr in (0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=F64)):
        assert_within(step("triton", x, grad, spec, lr=lr)[0], expected, 1e-14)


@pytest.mark.parametrize("retraction", ["exponential", "cayley", "polar"])
@pytest.mark.parametrize("lr", [1e-12, 1e7])
def test_steps_of_any_length_are_unitary(retraction, lr):
    x, grad = unitary(6, 6), torch.randn(6, 6, dtype=F64)
    spec = StepSpec(2, "tangent", retraction, 0)
    actual, _ = step("triton", x, grad, spec, lr=lr)
    expected, _ = step("reference", x, grad, spec, lr=lr)
    assert_unitary(actual, 100)
    if lr < 1 or retraction != "exponential":
        # What is long is told by its planes alone.
        assert_within(actual - x, expected - x, 1e-6 if lr > 1 else 1e-3 * lr)


@pytest.mark.parametrize("retraction", ["exponential", "cayley", "polar"])
@pytest.mark.parametrize(("k", "dtype"), [(1, F32), (3, C64), (16, F64)])
def test_a_step_of_length_zero_changes_no_bit(k, dtype, retraction):
    x, grad = unitary(40, 40, dtype=dtype), torch.randn(40, 40, dtype=dtype)
    spec = StepSpec(k, "tangent", retraction, 0)
    assert_bit_equal(step("triton", x, grad, spec, lr=0.0)[0], x)


def test_far_from_the_manifold_nothing_is_swept():
    x, grad = 1.5 * unitary(6, 6), torch.randn(6, 6, dtype=F64)
    spec = StepSpec(1, "tangent", "exponential", 2)
    actual, expected = (step(name, x, grad, spec)[0] for name in ("triton", "reference"))
    assert_within(actual, expected, 1e-13)


def test_a_batch_may_be_empty():
    p = geoopt.ManifoldParameter(torch.empty(0, 4, 4), manifold=LowRankUnitary())
    (stepped,), (state,), _ = run("triton", [p], "adam", steps=1)
    assert stepped.shape == state["exp_avg"].shape == (0, 4, 4)
