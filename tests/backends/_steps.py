"""Parameters for every method, and steps of them by one backend."""

import copy

import geoopt
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary, backends
from tests._asserts import assert_bit_equal
from tests._matrices import eps, unitary

from ._cases import RULES, device_of

# Ranks that a kernel knows and others.
METHODS = {
    "tangent": {"k": 1},
    "tangent, k = 3": {"k": 3, "sweep": 2},
    "lsi": {"k": 2, "sketch": "lsi", "retraction": "polar"},
    "column": {"k": 2, "sketch": "column", "retraction": "cayley"},
    "polar": {"k": 1, "retraction": "polar", "sweep": 0},
    "cayley": {"k": 2, "retraction": "cayley", "sweep": 3},
    "full rank": {"k": None},
}


def parameters(count, shape, dtype, method, layout=lambda x: x):
    options = dict(METHODS[method])
    *batch, n, p = shape
    if options["k"] is not None:
        options["k"] = min(options["k"], max(n, p) // 2, n, p)
    manifold = LowRankUnitary(**options) if n == p else LowRankStiefel(**options)
    size = max(n, p)
    return [
        geoopt.ManifoldParameter(
            layout(unitary(*batch, size, size, dtype=dtype)[..., :n, :p]), manifold=manifold
        )
        for _ in range(count)
    ]


def run(name, params, rule, steps=3, layout=lambda x: x, spoil=None, seed=1):
    """Step copies by one backend on its device; return points and state, on the CPU.

    And the optimizer.
    """
    device = device_of(name)
    params = [copy.deepcopy(p) for p in params]
    for p, own in zip(params, params, strict=True):
        p.data = layout(own.data.to(device))
    kind, options = RULES[rule]
    optimizer = kind(params, **options)
    generator = torch.Generator().manual_seed(seed)
    with backends.use(name):
        for step in range(steps):
            for index, p in enumerate(params):
                grad = torch.randn(p.shape, dtype=p.dtype, generator=generator) / p.shape[-1]
                if spoil is not None:
                    grad = spoil(grad, step, index)
                p.grad = layout(grad.to(device))
            optimizer.step()
    states = [{key: v.cpu() for key, v in optimizer.state[p].items()} for p in params]
    return [p.detach().cpu() for p in params], states, optimizer


def assert_alike(left, right, bound):
    for p, q in zip(left[0], right[0], strict=True):
        assert (p - q).abs().max() <= bound
    for one, other in zip(left[1], right[1], strict=True):
        assert one.keys() == other.keys()
        for key in ("step", "skipped"):
            assert_bit_equal(one[key], other[key])
        for key, value in one.items():
            size = max(1.0, float(other[key].abs().max()))
            assert (value - other[key]).abs().max() <= bound * size, key
    assert left[2].skipped_steps == right[2].skipped_steps


def bound(dtype, shape):
    # Where 2k test vectors reach nearly everything, the last of them are badly determined.
    return 1e3 * eps(dtype) * (100 if shape[-1] < 8 else 1)


def of_rank_one(grad, step, index):
    return grad[..., :1] @ grad[..., :1, :]


def with_cancelling_entries(grad, step, index):
    """Let all rows and columns sum to zero, as columns do after a softmax."""
    grad = grad - grad.mean(-1, keepdim=True)
    return grad - grad.mean(-2, keepdim=True)


def imaginary(grad, step, index):
    """Let all entries have no real part, if they are complex."""
    return 1j * grad.real if grad.is_complex() else grad


def zero_in_part(grad, step, index):
    return grad * 0 if (step + index) % 2 else grad
