"""foreach, fused and capturable choose torch's implementations, and refuse as torch does."""

import copy
import sys

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    OPTIMIZERS,
    Snapshot,
    assert_same_bits,
    feed,
    gradients,
    step_alike,
    unitary_parameter,
)

REFERENCES = {ProjUNNRiemannianSGD: torch.optim.SGD, ProjUNNRiemannianAdam: torch.optim.Adam}

PASSED_ON = [
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"weight_decay": 0.1, "foreach": True},
]


@pytest.mark.parametrize("options", PASSED_ON)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_torchs_implementations_are_chosen_as_in_torch(kind, options, monkeypatch):
    seen = []

    def spy(name):
        module = sys.modules[REFERENCES[kind].__module__]
        own = getattr(module, name)

        def wrapped(*args, **kwargs):
            seen.append(name)
            return own(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    family = "sgd" if kind is ProjUNNRiemannianSGD else "adam"
    for way in ("single_tensor", "multi_tensor", "fused"):
        spy(f"_{way}_{family}")
    ours = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    theirs = [copy.deepcopy(p) for p in ours]
    optimizer = kind([*ours, unitary_parameter(4, 4)], lr=0.1, **options)
    reference = REFERENCES[kind](theirs, lr=0.1, **options)
    pairs = list(zip(ours, theirs, strict=True))
    step_alike(pairs, [optimizer, reference])
    assert len(seen) == 8
    assert len(set(seen)) == 1
    for p, q in pairs:
        assert_same_bits(p, q)


def test_capturable_is_passed_on():
    optimizer = ProjUNNRiemannianAdam([unitary_parameter(4, 4)], capturable=True)
    group = {**optimizer.param_groups[0], "params": [torch.ones(3)]}
    with optimizer._others._plain._over({}, [group]) as delegate:
        assert delegate.param_groups[0]["capturable"] is True


def test_capturable_steps_of_plain_parameters_on_a_cpu_are_refused_at_once():
    p, plain = unitary_parameter(4, 4), torch.nn.Parameter(torch.ones(3))
    optimizer = ProjUNNRiemannianAdam([("p", p), ("plain", plain)], capturable=True)
    feed(optimizer, p, gradients(p, 2))
    p.grad, plain.grad = torch.randn(4, 4), torch.ones(3)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"`capturable` needs .* got parameter `plain`"):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_fused_steps_that_torch_cannot_take_are_refused_at_once(kind):
    p, plain = unitary_parameter(4, 4), torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = kind([p, plain], fused=True)
    p.grad, plain.grad = torch.randn(4, 4), torch.ones(3, dtype=torch.complex64)
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match="`fused=True` requires"):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_torch_refuses_is_refused_with_its_words(kind):
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        kind([unitary_parameter(4, 4)], fused=True, foreach=True)
    optimizer = kind([unitary_parameter(4, 4)])
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        optimizer.add_param_group(
            {"params": [unitary_parameter(4, 4)], "fused": True, "foreach": True}
        )
    assert len(optimizer.param_groups) == 1
