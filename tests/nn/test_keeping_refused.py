"""Conversions that a recurrent weight cannot take are refused, and nothing changes."""

import warnings

import pytest
import torch

from tests.nn._recurrent import MODULES, assert_kept, every_conversion, every_module, train_a_step


@every_module
@pytest.mark.parametrize("convert", [lambda m: m.half(), lambda m: m.bfloat16()])
@every_conversion
def test_half_precision_is_refused_and_nothing_changes(name, convert):
    module = MODULES[name]()
    before = {n: (p, p.detach().clone()) for n, p in module.named_parameters()}
    with pytest.raises(
        TypeError, match=r"`weight_hh.*` of .* it must have one of the dtypes .* half precis"
    ):
        convert(module)
    for n, p in module.named_parameters():
        assert p is before[n][0]
        assert torch.equal(p, before[n][1])
        assert p.dtype == before[n][1].dtype
    assert_kept(module)
    train_a_step(module)


@pytest.mark.parametrize("name", ["real layer", "real cell"])
def test_a_real_module_does_not_become_complex(name):
    module = MODULES[name]()
    with (
        pytest.warns(UserWarning, match="Complex modules are a new feature"),
        pytest.raises(
            TypeError, match=r"must be real, got torch.complex64; for complex weights use Unitary"
        ),
    ):
        module.to(torch.complex64)
    assert_kept(module)
    assert not any(p.is_complex() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "dtype", "rule"),
    [
        ("real layer", torch.bfloat16, "half precision cannot hold orthogonality"),
        ("complex layer", torch.bfloat16, "half precision cannot hold orthogonality"),
        ("real layer", torch.complex64, "must be real, got torch.complex64"),
        ("complex layer", torch.float32, "must be complex, got torch.float32"),
    ],
)
def test_assigning_another_kind_of_weight_is_refused(name, dtype, rule):
    module = MODULES[name]()
    before = dict(module.named_parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of imaginary parts that are discarded
        state = {n: p.detach().to(dtype) for n, p in before.items()}
    with pytest.raises(RuntimeError, match=rule):
        module.load_state_dict(state, assign=True)
    assert all(before[n] is p for n, p in module.named_parameters())
    assert_kept(module)
