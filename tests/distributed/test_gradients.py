"""A step that averages sketches of gradients is the step of the mean gradient."""

import contextlib
import copy

import geoopt
import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from geoopt_projunn import (
    LowRankUnitary,
    ProjUNNRiemannianSGD,
)
from geoopt_projunn.distributed import sketch_gradients_
from geoopt_projunn.nn import orthogonalize_

from ._meshes import digest
from ._sketched import SETTINGS, N, gradient, own_generator
from ._traffic import Traffic


def mean(t):
    t = t.clone()
    distributed.all_reduce(t)
    return t / distributed.get_world_size()


def compare(setting):
    options, manifold, shape = SETTINGS[setting]
    x = manifold.random(*shape, dtype=torch.float64)
    whole = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
    # Of the other processes other points: the first step gives them those of the first process.
    if distributed.get_rank() > 0:
        x = manifold.random(*shape, dtype=torch.float64)
    p = geoopt.ManifoldParameter(x.clone(), manifold=manifold)
    sketch_gradients_(p)
    one, other = (ProjUNNRiemannianSGD([q], lr=0.05, **options) for q in (whole, p))
    generator = own_generator()
    for _ in range(12):
        p.grad = gradient(generator, shape)
        whole.grad = mean(p.grad)
        one.step()
        other.step()
    errors = [(whole - p).abs().max()]
    state, expected = other.state_dict()["state"][0], one.state_dict()["state"][0]
    assert state.keys() == expected.keys()
    errors += [(state[name] - value).abs().max() for name, value in expected.items()]
    return float(max(errors)), digest(p, *state.values())


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_step_is_that_of_the_mean_gradient(world, setting):
    results = world.run(compare, setting)
    assert max(error for error, _ in results) < 1e-9
    assert len({end for _, end in results}) == 1


def resume():
    """Go on from a state dict in a second optimizer, and in the one that gave it."""
    manifold = LowRankUnitary(k=2)
    p = geoopt.ManifoldParameter(manifold.random(N, N))
    sketch_gradients_(p)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.05, momentum=0.9)
    generator = own_generator()

    def train(q, optimizer, steps):
        for _ in range(steps):
            q.grad = gradient(generator, (N, N), torch.float32)
            optimizer.step()

    train(p, optimizer, 3)
    q = geoopt.ManifoldParameter(p.detach().clone(), manifold=manifold)
    sketch_gradients_([q])
    again = ProjUNNRiemannianSGD([q], lr=0.05, momentum=0.9)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    before = generator.get_state()
    train(p, optimizer, 3)
    generator.set_state(before)
    train(q, again, 3)
    return torch.equal(p, q)


def test_training_resumes_with_the_same_bits(world):
    assert all(world.run(resume))


def count(n, k, sketch):
    manifold = LowRankUnitary(k=k, sketch=sketch)
    p = geoopt.ManifoldParameter(torch.eye(n), manifold=manifold)
    sketch_gradients_(p)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.05, momentum=0.9)
    traffic = Traffic()
    for _ in range(2):
        p.grad = torch.randn(n, n)
        with traffic if optimizer.state else contextlib.nullcontext():
            optimizer.step()
    return traffic.seen


@pytest.mark.parametrize(("sketch", "multiple", "exchanges"), [("tangent", 8, 4), ("lsi", 2, 3)])
def test_a_step_exchanges_few_rows_of_the_gradient(world, sketch, multiple, exchanges):
    n, k = 64, 4
    for seen in world.run(count, n, k, sketch):
        assert {name for name, _ in seen} == {"allreduce_"}
        assert len(seen) == exchanges
        # And two numbers by which processes agree.
        assert sum(size for _, size in seen) == multiple * k * n + 2


def under_ddp():
    torch.manual_seed(distributed.get_rank())
    model = torch.nn.Sequential(torch.nn.Linear(N, N), torch.nn.Linear(N, 3)).double()
    orthogonalize_(model, "0.weight", k=2)
    with torch.no_grad():
        for p in model.parameters():
            distributed.broadcast(p, 0)
    whole = torch.nn.Sequential(torch.nn.Linear(N, N), torch.nn.Linear(N, 3)).double()
    whole.load_state_dict(model.state_dict())
    orthogonalize_(whole, "0.weight", k=2)
    ignored = ["0.weight"]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, ignored)
    sketch_gradients_(model[0].weight)
    replicas = DistributedDataParallel(model), DistributedDataParallel(whole)
    optimizers = [ProjUNNRiemannianSGD(m.parameters(), lr=0.1, momentum=0.9) for m in replicas]
    generator = own_generator()
    for _ in range(6):
        x = gradient(generator, (4, N))
        for replica, optimizer in zip(replicas, optimizers, strict=True):
            optimizer.zero_grad()
            # Gradients of two batches add up.
            for half in x.chunk(2):
                replica(half).square().mean().backward()
            optimizer.step()
    own = digest(model[0].weight.grad)
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    return max(float((p - q).abs().max()) for p, q in pairs), own, digest(*model.parameters())


def test_replicas_of_ddp_that_ignores_a_matrix_are_stepped_as_if_it_did_not(world):
    results = world.run(under_ddp)
    assert max(error for error, *_ in results) < 1e-9
    assert len({own for _, own, _ in results}) == len(results)
    assert len({end for *_, end in results}) == 1
