"""The Triton kernels, interpreted on a CPU, do what the reference does.

In a process of its own, which `test_triton.py` starts: the interpreter has to be asked for before
anything imports Triton. It is slow, so these are few cases: together they have every kernel, rule,
retraction, dtype and layout, sizes of one tile, of several and of parts of tiles.
"""

import itertools

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.backends.spec import StepSpec
from geoopt_projunn.backends.triton import sizes, support
from tests._asserts import assert_bit_equal, assert_unitary, assert_within
from tests._matrices import eps, unitary

from ._cases import RULES, backend, by_columns, stretched
from .test_conformance import assert_alike, bound, of_rank_one, parameters, run, zero_in_part

if not support.INTERPRETED:
    pytest.skip("kernels are not interpreted in this process", allow_module_level=True)

# numpy warns of what is not finite, which kernels pass on.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128

# Entries around each piece of memory.
_AROUND = 64


@pytest.fixture(autouse=True)
def _memory(monkeypatch):
    """Give steps memory full of what nobody may read, and see what they write beside it."""
    # NaN shows in sums, and is lost in comparisons.
    fill = itertools.cycle((torch.nan, 1e30))
    pieces = []

    def carve(sizes, count, dtype, device):
        value = next(fill) if dtype.is_floating_point else 2**30
        made = {}
        for name, size in sizes.items():
            whole = torch.full((size * count + 2 * _AROUND,), value, dtype=dtype, device=device)
            pieces.append((name, whole, whole[0].clone()))
            made[name] = whole[_AROUND : _AROUND + size * count]
        return made

    monkeypatch.setattr(sizes, "carve", carve)
    yield
    for name, whole, value in pieces:
        beside = torch.cat((whole[:_AROUND], whole[-_AROUND:]))
        assert torch.equal(beside.isnan(), value.isnan().expand_as(beside)), name
        assert value.isnan() or (beside == value).all(), name


@pytest.mark.parametrize(
    ("rule", "dtype", "method"),
    [
        ("gradient", F32, "tangent"),
        ("gradient", C128, "lsi"),
        ("maximize", F64, "cayley"),
        ("momentum", C64, "tangent, k = 3"),
        ("nesterov", F64, "polar"),
        ("adam", C64, "tangent"),
        ("adam", F32, "tangent, k = 3"),
        ("amsgrad", C128, "tangent, k = 3"),
        ("scalar", F32, "tangent, k = 3"),
        ("scalar amsgrad", C64, "tangent"),
        ("feedback", F64, "tangent"),  # and what the kernels leave to the reference
        ("gradient", F32, "column"),
        ("gradient", F32, "full rank"),
    ],
)
def test_steps_are_those_of_the_reference(rule, dtype, method):
    params = parameters(2, (24, 24), dtype, method)
    actual, expected = (run(name, params, rule, steps=2) for name in ("triton", "reference"))
    assert_alike(actual, expected, bound(dtype, (24, 24)))
    for p, start in zip(actual[0], params, strict=True):
        assert (p - start.detach()).abs().max() > 1e-4
        assert_unitary(p)


def step(name, x, grad, spec, taken=3, rule="gradient", lr=0.1):
    """Take one step; return the point and the buffers."""
    kind, options = RULES[rule]
    group = {"compile": False, **kind([torch.nn.Parameter(x)], **options).defaults, "lr": lr}
    x, made = x.clone(), kind._rule.first_buffers(x, group)
    lead = x.shape[:-2]
    buffers = {
        **made,
        "step": torch.full(lead, taken),
        "skipped": torch.zeros(lead, dtype=x.dtype.to_real()),
    }
    pieces = {key: [value] for key, value in buffers.items()}
    with torch.no_grad():
        backend(name).step_([x], [grad], pieces, kind._rule, group, spec)
    return x, buffers


@pytest.mark.parametrize(
    ("shape", "dtype", "spec", "rule", "taken"),
    [
        ((2, 2), F64, StepSpec(1, "tangent", "exponential", 1), "gradient", 0),
        ((7, 7), C128, StepSpec(3, "tangent", "polar", 7), "gradient", 2**40 + 1),
        ((2, 2, 5, 5), F64, StepSpec(2, "lsi", "cayley", 0), "gradient", 5),
        # Several columns and rows of tiles.
        ((150, 150), F64, StepSpec(1, "tangent", "exponential", 3), "adam", 149),
        ((130, 70), C128, StepSpec(2, "tangent", "cayley", 1), "scalar", 1_000_003),
        ((140, 70), F64, StepSpec(3, "lsi", "polar", 2), "amsgrad", 8),
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
    ("normalize", "lr", "k", "sketch", "dtype", "rule"),
    [
        ("angle", 0.3, 2, "tangent", C128, "gradient"),
        ("angle", torch.tensor(0.3, dtype=F64), 1, "tangent", F64, "scalar"),
        ("angle", 40.0, 2, "lsi", F64, "gradient"),  # which is more than half a turn
        ("spectral", 0.3, 2, "tangent", C128, "scalar amsgrad"),
        ("spectral", -4.0, 2, "lsi", F64, "scalar"),
    ],
)
def test_so_they_are_in_radians(normalize, lr, k, sketch, dtype, rule):
    x, grad = unitary(8, 8, dtype=dtype), torch.randn(8, 8, dtype=dtype)
    spec = StepSpec(k, sketch, "exponential", 1, 2.0, normalize)
    actual, expected = (
        step(name, x, grad, spec, lr=lr, rule=rule)[0] for name in ("triton", "reference")
    )
    assert_within(actual, expected, 1e-11)
    assert (actual - x).abs().max() > 0.1


@pytest.mark.parametrize(
    ("size", "k", "sketch"), [(1e-200, 2, "lsi"), (1e200, 1, "tangent"), (1e305, 2, "tangent")]
)
def test_so_they_are_in_radians_where_squares_leave_float64(size, k, sketch):
    x, grad = unitary(8, 8), size * torch.randn(8, 8, dtype=F64)
    spec = StepSpec(k, sketch, "exponential", 0, 1.0, "angle")
    actual, expected = (step(name, x, grad, spec)[0] for name in ("triton", "reference"))
    assert_within(actual, expected, 1e-14)
    assert (actual - x).abs().max() > 0.01


def test_gradients_that_vanish_skip_no_step():
    x, grad = unitary(8, 8), 1e-310 * torch.randn(8, 8, dtype=F64)
    actual, buffers = step("triton", x, grad, StepSpec(2, "tangent", "exponential", 1))
    assert_within(actual, x, 1e-14)
    assert buffers["skipped"] == 0


def test_a_normal_direction_is_not_followed_in_radians():
    x = unitary(8, 8)
    spec = StepSpec(1, "tangent", "exponential", 0, 1.0, "angle")
    symmetric = torch.randn(8, 8, dtype=F64)
    actual, _ = step("triton", x, (symmetric + symmetric.mT) @ x, spec)
    assert_within(actual, x, 1e-14)


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


@pytest.mark.parametrize(("spoil", "k"), [(of_rank_one, 3), (zero_in_part, 1), (zero_in_part, 3)])
def test_so_they_are_for_zero_and_dependent_gradients(spoil, k):
    params = parameters(2, (12, 12), F64, "tangent" if k == 1 else "tangent, k = 3")
    actual, expected = (
        run(name, params, "gradient", steps=2, spoil=spoil) for name in ("triton", "reference")
    )
    assert_alike(actual, expected, 1e-10)
    for p in actual[0]:
        assert_unitary(p)


@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
@pytest.mark.parametrize(
    ("rule", "method", "bad"),
    [
        ("gradient", "tangent", torch.nan),
        ("gradient", "tangent, k = 3", torch.inf),
        ("maximize", "lsi", -torch.inf),
        ("nesterov", "tangent", torch.inf),
        ("amsgrad", "tangent", torch.nan),
        ("scalar", "tangent", -torch.inf),
    ],
)
def test_where_a_step_is_not_finite_nothing_changes(rule, method, bad):
    def spoil(grad, step, index):
        if step == 1:
            grad[1, 3, 4] = bad
        return grad

    params = parameters(1, (2, 8, 8), F32, method)
    before = run("triton", params, rule, steps=1)
    after = run("triton", params, rule, steps=2, spoil=spoil)
    assert_bit_equal(after[0][0][1], before[0][0][1])
    for key, value in after[1][0].items():
        if key != "skipped":
            assert_bit_equal(value[1], before[1][0][key][1])
    assert after[1][0]["skipped"].tolist() == [0, 1]
    assert after[1][0]["step"].tolist() == [2, 1]
    assert not torch.equal(after[0][0][0], before[0][0][0])


@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
@pytest.mark.parametrize(
    ("rule", "share"), [("momentum", 0.9), ("adam", 1e-12), ("scalar amsgrad", 1e-12)]
)
def test_state_that_would_overflow_skips_the_step(rule, share):
    def spoil(grad, step, index):
        # Below what overflows by itself: momentum adds up, second moments square.
        if rule == "momentum" or step == 1:
            grad[1, 2] = torch.finfo(F32).max * share
        return grad

    shape, dtype = ((24, 24), F32) if rule == "momentum" else ((8, 8), C64)
    params = parameters(1, shape, dtype, "tangent")
    before = run("triton", params, rule, steps=1, spoil=spoil)
    after = run("triton", params, rule, steps=2, spoil=spoil)
    assert after[1][0]["skipped"] == 1
    for key, value in after[1][0].items():
        if key not in ("skipped", "step"):
            assert_bit_equal(value, before[1][0][key])


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


def test_far_from_the_manifold_nothing_is_swept():
    x, grad = 1.5 * unitary(6, 6), torch.randn(6, 6, dtype=F64)
    spec = StepSpec(1, "tangent", "exponential", 2)
    actual, expected = (step(name, x, grad, spec)[0] for name in ("triton", "reference"))
    assert_within(actual, expected, 1e-13)


def test_a_batch_may_be_empty():
    p = geoopt.ManifoldParameter(torch.empty(0, 4, 4), manifold=LowRankUnitary())
    run("triton", [p], "adam", steps=1)
