"""Where torch lacks a private name, the answers are those with which everything is right."""

import importlib

import pytest
import torch

from geoopt_projunn.linalg import modes
from geoopt_projunn.nn import OrthogonalRNN
from tests._asserts import assert_within


def test_modes_are_what_torch_says():
    x = torch.randn(2)
    seen = []

    def look(t):
        seen.append(modes.is_transformed())
        return (t * t).sum()

    assert not modes.is_transformed()
    torch.func.grad(look)(x)
    assert seen == [True]
    assert not modes.in_forward_mode()
    with torch.autograd.forward_ad.dual_level():
        assert modes.in_forward_mode()
    assert not modes.is_watched()
    with torch.profiler.profile():
        assert modes.is_watched()
    assert not modes.is_autocast()
    with torch.autocast("cpu"):
        assert modes.is_autocast()


@pytest.mark.parametrize(
    ("place", "name", "question"),
    [
        (torch._C, "_are_functorch_transforms_active", modes.is_transformed),
        (torch._C, "_len_torch_dispatch_stack", modes.is_watched),
        (torch._C._autograd, "_profiler_enabled", modes.is_watched),
        (torch._C, "_is_any_autocast_enabled", modes.is_autocast),
    ],
)
def test_without_a_private_name_a_warning_says_so(place, name, question, monkeypatch):
    layer, x = OrthogonalRNN(3, 8), torch.randn(4, 2, 3)
    expected = layer(x)[0]
    with monkeypatch.context() as patched:
        patched.delattr(place, name)
        with pytest.warns(UserWarning, match=rf"has no `torch\..*{name}`.* right but slower"):
            importlib.reload(modes)
        answer = getattr(modes, question.__name__)()
        actual = layer(x)[0]
    importlib.reload(modes)
    assert answer is (name != "_is_any_autocast_enabled")
    assert_within(actual.detach(), expected.detach(), 1e-6)
