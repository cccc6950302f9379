"""Steps along averaged gradients, however these lie in memory and in whatever order."""

import geoopt
import pytest
import torch
from torch import distributed

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.distributed import sketch_gradients_

from ._averaging import N, Replica, group_of
from ._meshes import digest
from ._traffic import Traffic


def strides(complex_):
    """Step twice with gradients that one process has transposed, and conjugated lazily."""
    dtype = torch.complex128 if complex_ else torch.float64
    group, manifold = group_of((0, 1)), LowRankUnitary(k=2)
    rank = distributed.get_rank()
    points = [manifold.random(N, N, dtype=dtype) for _ in range(2)]
    if rank > 1:
        return 0.0
    whole, own = (
        [geoopt.ManifoldParameter(x.clone(), manifold=manifold) for x in points] for _ in range(2)
    )
    sketch_gradients_(own, group)
    optimizers = [ProjUNNRiemannianSGD(params, lr=0.1, momentum=0.9) for params in (whole, own)]
    for _ in range(2):
        for i, (p, q) in enumerate(zip(whole, own, strict=True)):
            q.grad = torch.randn_like(q) * (1 + rank)
            p.grad = q.grad.clone()
            distributed.all_reduce(p.grad, group=group)
            p.grad /= 2
            if rank == i:
                q.grad = q.grad.mH.contiguous().mH
        for optimizer in optimizers:
            optimizer.step()
    return max(float((p - q).abs().max()) for p, q in zip(whole, own, strict=True))


@pytest.mark.parametrize("complex_", [False, True])
def test_gradients_may_have_other_strides_elsewhere(world, complex_):
    assert max(world.run(strides, complex_)) < 1e-12


def mixed():
    """Give one process's optimizer the matrices of two kinds in another order."""
    group, rank = group_of((0, 1)), distributed.get_rank()
    if rank > 1:
        return True
    manifolds = [LowRankUnitary(k=2), LowRankUnitary(k=1), LowRankUnitary(k=2)]
    torch.manual_seed(rank)
    params = [geoopt.ManifoldParameter(m.random(N, N), manifold=m) for m in manifolds]
    sketch_gradients_(params, group)
    first, *others = params
    optimizer = ProjUNNRiemannianSGD([first, *(others if rank == 0 else others[::-1])], lr=0.1)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    everywhere = [None] * 2
    distributed.all_gather_object(everywhere, digest(*params), group=group)
    return len(set(everywhere)) == 1


def test_matrices_of_two_kinds_get_their_own_values_in_any_order(world):
    """Of each kind the order is the same: the steps agree."""
    assert all(world.run(mixed))


def wait_for_nobody():
    """Take steps for which no process has the gradient of a matrix, and count the exchanges."""
    replica = Replica(3)
    if not replica.is_in:
        return [("allreduce_", 2)], 0.9
    replica.give("")
    replica.c.grad.fill_(1.0)
    with Traffic() as traffic:
        replica.optimizer.step()
    return traffic.seen, round(float(replica.c[0].detach()), 6)


def test_a_step_without_such_gradients_exchanges_two_numbers(world):
    assert world.run(wait_for_nobody) == [([("allreduce_", 2)], 0.9)] * 4
