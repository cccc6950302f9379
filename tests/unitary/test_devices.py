"""Steps read no value back, without data and on a GPU."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from geoopt_projunn import LowRankUnitary
from tests._asserts import assert_within
from tests._gpu import no_waiting
from tests._matrices import RETRACTIONS, SKETCHES, tangent_at

from ._methods import LOW_RANK, METHODS, arguments, tensors


@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_fake_tensors_pass_through_steps(retraction, sketch, method):
    # Anything that read a value would raise here.
    manifold = LowRankUnitary(2, retraction=retraction, sketch=sketch)
    with FakeTensorMode():
        for result in tensors(METHODS[method](manifold, *torch.empty(4, 3, 64, 64))):
            assert result.shape == (3, 64, 64)


@pytest.mark.gpu
@pytest.mark.parametrize("method", LOW_RANK)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_steps_on_a_gpu_equal_those_on_a_cpu_and_wait_for_nothing(retraction, sketch, method):
    manifold = LowRankUnitary(2, retraction=retraction, sketch=sketch)
    values = arguments(3, n=32, dtype=torch.float64)
    values[2].copy_(tangent_at(values[0], rank=4))
    expected = tensors(METHODS[method](manifold, *values))
    values = [t.cuda() for t in values]
    METHODS[method](manifold, *values)  # the first call may allocate
    with no_waiting():
        result = tensors(METHODS[method](manifold, *values))
    for one, other in zip(result, expected, strict=True):
        assert_within(one.cpu(), other, 1e-11)
