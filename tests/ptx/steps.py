"""Steps by compiled kernels do what the reference does; test_compiled.py runs this."""

import pytest
import torch

from geoopt_projunn.backends.spec import StepSpec
from tests._asserts import assert_bit_equal, assert_unitary
from tests._matrices import unitary
from tests.backends._steps import assert_alike, bound, parameters, run
from tests.backends.interpreted._step import step

from . import plugin

F32, F64, C64 = torch.float32, torch.float64, torch.complex64


@pytest.mark.parametrize(
    ("shape", "rule", "dtype", "method", "launches"),
    [
        # One launch takes the steps of small matrices.
        ((2, 24, 24), "nesterov", F32, "tangent", 1),
        ((20, 20), "amsgrad", C64, "tangent, k = 3", 1),
        # Several rows and columns of tiles; kernels begin before those before them have ended.
        ((70, 70), "momentum", F32, "tangent", 14),
        ((66, 65), "scalar", F64, "tangent", 14),
        ((65, 65), "gradient", F32, "lsi", 11),
    ],
)
def test_steps_are_those_of_the_reference(shape, rule, dtype, method, launches):
    params = parameters(1, shape, dtype, method)
    before = dict(plugin.ran)
    actual = run("triton", params, rule, steps=2)
    # The first step is launched by Triton, and the second one by C++.
    own = {name: plugin.ran[name] - count for name, count in before.items()}
    assert own == {"launched by Triton": launches, "launched by C++": launches}
    assert_alike(actual, run("reference", params, rule, steps=2), bound(dtype, shape[-2:]))
    for p, start in zip(actual[0], params, strict=True):
        assert (p - start.detach()).abs().max() > 1e-4
        assert_unitary(p)


@pytest.mark.parametrize(("n", "rule"), [(24, "nesterov"), (70, "momentum")])
def test_bits_do_not_depend_on_the_order_of_programs_and_warps(n, rule):
    """The random order differs in each of these runs."""
    x, grad = unitary(2, n, n, dtype=F32), torch.randn(2, n, n)
    spec = StepSpec(1, "tangent", "exponential", 1)
    first, again = (step("triton", x, grad, spec, rule=rule)[0] for _ in range(2))
    assert_bit_equal(again, first)
    assert_bit_equal(step("triton", x[1:2], grad[1:2], spec, rule=rule)[0], first[1:2])
