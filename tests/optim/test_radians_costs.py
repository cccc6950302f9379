"""What steps in radians cost beside others."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD

from ._radians import each_name, each_optimizer
from .test_costs import assert_linear_in_k_n_squared, assert_never_waits, flops, ready

pytestmark = pytest.mark.usefixtures("each_way")


@each_name
@pytest.mark.parametrize("k", [1, 4])
def test_it_costs_a_constant_times_k_n_squared(k, normalize):
    assert_linear_in_k_n_squared(ProjUNNRiemannianSGD, {"normalize": normalize}, k)


@each_name
def test_beside_a_plain_step_it_costs_products_of_cores(normalize):
    work = [
        flops(ready(ProjUNNRiemannianSGD, {"normalize": name}, 4096, 4096, k=8, lr=lr))
        for name, lr in ((None, 0.1), (normalize, 0.1))
    ]
    assert work[1] - work[0] < 2**12 * 16**3


@each_name
@each_optimizer
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)])
def test_nothing_waits_for_the_device(kind, normalize, lr):
    # The kernels read a tensor on a CPU where it is.
    rate = lr.to("meta") if isinstance(lr, torch.Tensor) else lr
    assert_never_waits(ready(kind, {"normalize": normalize}, 3, 16, 16, lr=rate, k=2))
