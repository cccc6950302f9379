"""What interpreted kernels would make not finite they leave as it is."""

import pytest
import torch

from geoopt_projunn.backends.spec import StepSpec
from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import unitary
from tests.backends._steps import parameters, run

from ._step import C64, F32, F64, step

pytestmark = [
    pytest.mark.usefixtures("spoilt_memory"),
    # numpy warns of what is not finite, which kernels pass on.
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]


def test_gradients_that_vanish_skip_no_step():
    x, grad = unitary(8, 8), 1e-310 * torch.randn(8, 8, dtype=F64)
    actual, buffers = step("triton", x, grad, StepSpec(2, "tangent", "exponential", 1))
    assert_within(actual, x, 1e-14)
    assert buffers["skipped"] == 0


@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
@pytest.mark.parametrize(
    ("small", "rule", "method", "bad"),
    [
        ("one kernel", "gradient", "tangent", torch.nan),
        ("one kernel", "maximize", "lsi", -torch.inf),
        ("one kernel", "scalar", "tangent", -torch.inf),
        ("many kernels", "gradient", "tangent, k = 3", torch.inf),
        ("many kernels", "nesterov", "tangent", torch.inf),
        ("many kernels", "amsgrad", "tangent", torch.nan),
    ],
    indirect=["small"],
)
@pytest.mark.usefixtures("small")
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
