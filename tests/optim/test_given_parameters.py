"""Parameters are given as torch's optimizers take them: in groups, with names, from generators."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_within,
    feed,
    gradients,
    on_manifold,
    unitary_parameter,
)
from ._runs import each_setting, run


@each_setting
def test_a_group_that_is_added_later_is_stepped_from_then_on(kind, options):
    first, second = (unitary_parameter(6, 6, dtype=torch.float64) for _ in range(2))
    apart = on_manifold(second.detach())
    optimizer = kind([first], **options)
    run(optimizer, [first], range(2))
    optimizer.add_param_group({"params": [second], "lr": 0.02})
    assert optimizer.param_groups[1]["lr"] == 0.02
    generator_free = gradients(second, 3)
    feed(optimizer, second, generator_free)
    feed(kind([apart], **{**options, "lr": 0.02}), apart, generator_free)
    assert_within(second, apart, 1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_groups_have_their_own_learning_rates(kind):
    params = [unitary_parameter(6, 6, dtype=torch.float64) for _ in range(3)]
    apart = [on_manifold(p.detach()) for p in params]
    rates = (0.0, 0.01, 0.1)
    optimizer = kind(
        [{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)], lr=1.0
    )
    others = [kind([p], lr=lr) for p, lr in zip(apart, rates, strict=True)]
    run(optimizer, params, range(3))
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for p, other in zip(apart, others, strict=True):
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            other.step()
    for p, q in zip(params, apart, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_may_come_from_a_generator(kind):
    module = torch.nn.Linear(3, 3)
    module.weight = geoopt.ManifoldParameter(LowRankUnitary().random(3, 3))
    for params in (module.parameters(), [{"params": module.parameters()}]):
        optimizer = kind(params)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert [id(p) for p in held] == [id(module.weight), id(module.bias)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_may_have_names(kind):
    module = torch.nn.Linear(3, 3)
    module.weight = geoopt.ManifoldParameter(LowRankUnitary().random(3, 3))
    optimizer = kind(module.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["weight", "bias"]
    before = [p.detach().clone() for p in module.parameters()]
    run(optimizer, list(module.parameters()), range(1))
    assert not any(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    names = optimizer.state_dict()["param_groups"][0]["param_names"]
    assert names == ["weight", "bias"]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_bare_parameter_in_place_of_a_list_is_refused(kind):
    with pytest.raises(TypeError, match="iterable of Tensors or dicts"):
        kind(unitary_parameter(4, 4))
