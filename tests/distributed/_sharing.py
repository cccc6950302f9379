"""Two matrices in parts, on processes of which one may have other options."""

import datetime

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD

from ._meshes import digest, local
from .test_steps import parameter

N = 12
_made = {}


def _group(*ranks):
    # Where an exchange does not fit, the error is that of the time-out.
    return distributed.new_group(ranks, timeout=datetime.timedelta(seconds=4))


def of_two():
    """Return a mesh of processes 0 and 1, None on others; made by all, and once."""
    if "two" not in _made:
        group = _group(0, 1)
        _made["two"] = DeviceMesh.from_group(group, "cpu") if distributed.get_rank() < 2 else None
    return _made["two"]


def of_four():
    """Return a mesh of 2 x 2 processes, and that of its second dimension."""
    if "four" not in _made:
        rank = distributed.get_rank()
        first = [_group(0, 2), _group(1, 3)][rank % 2]
        second = [_group(0, 1), _group(2, 3)][rank // 2]
        ranks = torch.arange(4).view(2, 2)
        names = ("first", "second")
        both = DeviceMesh.from_group([first, second], "cpu", mesh=ranks, mesh_dim_names=names)
        _made["four"] = both, DeviceMesh.from_group(second, "cpu")
    return _made["four"]


class Sharer:
    """Matrices a and b, whose rows are split, and a plain parameter c of each process."""

    def __init__(self, mesh, *, kind=ProjUNNRiemannianSGD, config=(), swap=False, **options):
        manifold = LowRankUnitary(**{"k": 2, **dict(config)})
        torch.manual_seed(1)
        self.start = [manifold.random(N, N, dtype=torch.float64) for _ in range(2)]
        parts = [x.as_subclass(torch.Tensor) for x in self.start]
        self.a, self.b = (
            parameter(distribute_tensor(x, mesh, [Shard(i) for i in range(mesh.ndim)]), manifold)
            for x in parts
        )
        self.c = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
        named = [("a", self.a), ("b", self.b), ("c", self.c)]
        self.optimizer = kind(named[::-1] if swap else named, **{"lr": 0.1, **options})
        self.give("ab")

    @property
    def group(self):
        return self.optimizer.param_groups[0]

    def give(self, names):
        """Give these parameters gradients, the others none; so does c get one."""
        for name in "abc":
            p = getattr(self, name)
            p.grad = (p.detach() + 1).square() if name in names + "c" else None

    def refused(self, error, match):
        """Take a step that raises an error and changes nothing."""
        before = self.bits()
        with pytest.raises(error, match=match):
            self.optimizer.step()
        assert self.bits() == before

    def bits(self):
        state = [self.optimizer.state.get(p, {}) for p in (self.a, self.b, self.c)]
        tensors = [local(t) for of in state for t in of.values() if isinstance(t, torch.Tensor)]
        points = [local(p) for p in (self.a, self.b, self.c)]
        return list(map(sorted, state)), digest(*points, *tensors)

    def step(self):
        """Take a step, and return the points, whole."""
        self.optimizer.step()
        return self.a.full_tensor(), self.b.full_tensor()
