"""Processes of which the first average the gradients of two matrices."""

import datetime

import geoopt
import pytest
import torch
from torch import distributed

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.distributed import sketch_gradients_

from ._meshes import digest

N = 12

RULES = {
    "gradient": ({}, LowRankUnitary(k=2), (N, N)),
    "nesterov, lsi": ({"momentum": 0.9, "nesterov": True}, LowRankUnitary(sketch="lsi"), (N, N)),
    "feedback": ({"momentum": 0.5, "error_feedback": 0.9}, LowRankUnitary(k=2), (N, N)),
    "wide, angle": ({"momentum": 0.9, "normalize": "angle"}, LowRankStiefel(k=1), (4, N)),
    "blocks, all": ({"skip_nonfinite": "all"}, LowRankUnitary(blocks=2), (2 * N, N)),
}
MOMENTUM = {"momentum": 0.9}
_groups = {}


def group_of(ranks):
    """Return a group in which nobody waits long; made by all processes, and once."""
    if ranks not in _groups:
        _groups[ranks] = distributed.new_group(ranks, timeout=datetime.timedelta(seconds=30))
    return _groups[ranks]


class Replica:
    """Two matrices, whose gradients the first processes average, and a plain parameter."""

    def __init__(self, size=2, rule="gradient", *, swap_marks=False, swap_groups=False, **options):
        defaults, manifold, shape = RULES[rule]
        self.group = group_of(tuple(range(size)))
        self.is_in = distributed.get_rank() < size
        self.rank = distributed.get_rank()
        points = [manifold.random(*shape, dtype=torch.float64) for _ in range(2)]
        self.a, self.b = (geoopt.ManifoldParameter(x, manifold=manifold) for x in points)
        self.c = torch.nn.Parameter(torch.ones(3))
        marked, named = [self.a, self.b], [("a", self.a), ("b", self.b), ("c", self.c)]
        if self.is_in:
            sketch_gradients_(marked[::-1] if swap_marks else marked, self.group)
        self.optimizer = ProjUNNRiemannianSGD(
            named[::-1] if swap_groups else named, lr=0.1, **{**defaults, **options}
        )

    def give(self, names):
        """Give these parameters gradients, the others none; so does c get one."""
        for name in "abc":
            p = getattr(self, name)
            p.grad = torch.randn_like(p) * (1 + self.rank) if name in names + "c" else None

    def refused(self, error, match):
        """Take a step that raises an error and changes nothing."""
        before = self.bits()
        with pytest.raises(error, match=match):
            self.optimizer.step()
        assert self.bits() == before

    def bits(self, names="abc"):
        params = [getattr(self, name) for name in names]
        state = [self.optimizer.state.get(p, {}) for p in params]
        tensors = [t for of in state for t in of.values() if isinstance(t, torch.Tensor)]
        return list(map(sorted, state)), digest(*params, *tensors)

    def is_alike(self):
        """Return whether all processes have the same points."""
        own = digest(self.a, self.b)
        everywhere = [None] * self.group.size()
        distributed.all_gather_object(everywhere, own, group=self.group)
        return len(set(everywhere)) == 1
