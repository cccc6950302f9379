"""A torch whose compiler corrupts memory on a CPU compiles no steps there."""

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD, backends
from geoopt_projunn.backends import torch_compile

from ._helpers import assert_same_bits, feed, gradients, on_manifold, rotation


@pytest.fixture(autouse=True)
def _corrupting(monkeypatch):
    monkeypatch.setattr(torch_compile, "_CORRUPTS_MEMORY", True)
    monkeypatch.setattr(torch, "compile", None)
    torch_compile._warn_of_corruption.cache_clear()
    yield
    torch_compile._warn_of_corruption.cache_clear()


def test_it_is_not_asked_and_one_warning_says_so():
    start = rotation(3, 12, 12)
    p, q = (on_manifold(start, k=1) for _ in range(2))
    eager, other = (ProjUNNRiemannianSGD([x], lr=0.1, compile=x is q) for x in (p, q))
    grads = gradients(p, 3)
    with backends.use("reference"):
        feed(eager, p, grads)
        with pytest.warns(UserWarning, match="`compile=True` has no effect on a CPU, .* torch 2.9"):
            feed(other, q, grads[:1])
        feed(other, q, grads[1:])
    assert_same_bits(p, q)
