"""Interpreted kernels take steps in radians as the reference does."""

import pytest
import torch

from geoopt_projunn.backends.spec import StepSpec
from tests._asserts import assert_within
from tests._matrices import unitary

from ._step import C128, F64, step

pytestmark = [
    pytest.mark.usefixtures("spoilt_memory"),
    # numpy warns of what is not finite, which kernels pass on.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


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


def test_a_normal_direction_is_not_followed_in_radians():
    x = unitary(8, 8)
    spec = StepSpec(1, "tangent", "exponential", 0, 1.0, "angle")
    symmetric = torch.randn(8, 8, dtype=F64)
    actual, _ = step("triton", x, (symmetric + symmetric.mT) @ x, spec)
    assert_within(actual, x, 1e-14)
