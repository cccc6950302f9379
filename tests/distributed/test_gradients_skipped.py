"""One gradient that is not finite leaves all processes unstepped."""

import datetime

import geoopt
import pytest
import torch
from torch import distributed

from geoopt_projunn import (
    LowRankUnitary,
    ProjUNNRiemannianSGD,
)
from geoopt_projunn.distributed import sketch_gradients_

from ._sketched import SETTINGS, N


def skip(bad, everything):
    manifold = LowRankUnitary(k=2)
    p = geoopt.ManifoldParameter(manifold.random(N, N))
    plain = torch.nn.Parameter(torch.ones(3))
    sketch_gradients_(p)
    option = "all" if everything else "manifold"
    optimizer = ProjUNNRiemannianSGD([p, plain], lr=0.05, momentum=0.9, skip_nonfinite=option)
    p.grad, plain.grad = torch.randn(N, N), torch.ones(3)
    optimizer.step()
    start, buffer = p.detach().clone(), optimizer.state[p]["momentum_buffer"].clone()
    p.grad = torch.randn(N, N)
    if distributed.get_rank() == 2:
        p.grad[3, 4] = bad
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    same = torch.equal(p, start) and torch.equal(optimizer.state[p]["momentum_buffer"], buffer)
    return same, optimizer.skipped_steps, float(plain[0].detach())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("everything", [False, True])
def test_one_bad_gradient_leaves_all_processes_unstepped(world, bad, everything):
    results = world.run(skip, bad, everything)
    assert len(set(results)) == 1
    same, skipped, plain = results[0]
    assert same
    assert skipped == 1
    assert plain == pytest.approx(1 - 0.05 if everything else 1 - 0.05 - 0.05 * 1.9)


def skip_wherever(setting):
    """Let one process after the other have one bad entry, each somewhere else."""
    options, manifold, shape = SETTINGS[setting]
    p = geoopt.ManifoldParameter(manifold.random(*shape))
    sketch_gradients_(p)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.05, **options)
    p.grad = torch.randn(shape)
    optimizer.step()
    bad = torch.nan, torch.inf, -torch.inf
    start, moved = p.detach().clone(), 0
    for trial in range(24):
        p.grad = torch.randn(shape) * (1 + distributed.get_rank())
        where = torch.randint(p.numel(), ())
        if distributed.get_rank() == trial % 4:
            p.grad.view(-1)[where] = bad[trial % 3]
        optimizer.step()
        moved += not torch.equal(p, start)
    state = optimizer.state_dict()["state"][0]
    fine = all(bool(t.isfinite().all()) for t in state.values())
    return moved, fine, optimizer.skipped_steps


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "blocks"])
def test_a_bad_entry_anywhere_leaves_all_processes_unstepped(world, setting):
    assert world.run(skip_wherever, setting) == [(0, True, 24)] * 4


def skip_for_a_plain_one():
    """A plain parameter has a gradient, which nobody averages, that is bad on one process."""
    group = distributed.new_group(timeout=datetime.timedelta(seconds=10))
    p = geoopt.ManifoldParameter(LowRankUnitary(k=2).random(N, N))
    plain = torch.nn.Parameter(torch.ones(3))
    sketch_gradients_(p, group)
    optimizer = ProjUNNRiemannianSGD([p, plain], lr=0.05, skip_nonfinite="all")
    start = p.detach().clone()
    p.grad, plain.grad = torch.randn(N, N), torch.ones(3)
    if distributed.get_rank() == 1:
        plain.grad[0] = torch.nan
    optimizer.step()
    return torch.equal(p, start), optimizer.skipped_steps, plain.tolist()


@pytest.mark.filterwarnings("ignore")
def test_processes_skip_together_whatever_gradient_is_bad(world):
    assert world.run(skip_for_a_plain_one) == [(True, 1, [1.0] * 3)] * 4
