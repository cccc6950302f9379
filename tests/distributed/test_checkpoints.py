"""A distributed checkpoint is loaded by as many processes as one likes."""

import geoopt
import pytest
import torch
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.distributed import keep_manifolds
from geoopt_projunn.nn import orthogonality_errors, orthogonalize_

from ._meshes import digest, mesh_of

N = 10
KINDS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.02, "second_moment": "scalar"}),
}


class Turns(torch.nn.Module):
    """A batch of matrices, of which the last process has none."""

    def __init__(self):
        super().__init__()
        turns = LowRankUnitary().random(3, N, N, dtype=torch.float64)
        self.weight = geoopt.ManifoldParameter(turns)

    def forward(self, x):
        for turn in self.weight:
            x = torch.tanh(x @ turn)
        return x


def build(kind, mesh):
    """Return a model on processes, or a whole one, with an optimizer."""
    double = {"dtype": torch.float64}
    model = torch.nn.Sequential(
        torch.nn.Linear(N, N, **double), Turns(), torch.nn.Linear(N, 2, **double)
    )
    orthogonalize_(model, "0.weight", k=2)
    if mesh is not None:
        with keep_manifolds(model):
            fully_shard(model[0], mesh=mesh)
            fully_shard(model, mesh=mesh)
    make, options = KINDS[kind]
    return model, make(model.parameters(), **options)


def train(model, optimizer, first, steps):
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(6, N, generator=generator, dtype=torch.float64)
        optimizer.zero_grad()
        (model(x) - x[:, :2]).square().mean().backward()
        optimizer.step()


def full(p):
    return (p.full_tensor() if hasattr(p, "placements") else p).detach()


def save(kind, folder):
    torch.manual_seed(0)
    model, optimizer = build(kind, mesh_of((4,)))
    train(model, optimizer, 0, 3)
    state = dict(zip(("model", "optimizer"), get_state_dict(model, optimizer), strict=True))
    checkpoint.save(state, checkpoint_id=folder)
    train(model, optimizer, 3, 3)
    return [full(p).tolist() for p in model.parameters()], digest(*map(full, model.parameters()))


def load(folder, group, **state):
    checkpoint.load(state, checkpoint_id=folder, process_group=group)


def resume(kind, folder, size, *, model_first=False):
    mesh = mesh_of((size,)) if size > 1 else None
    if mesh is None and size > 1:
        return None
    torch.manual_seed(7)
    model, optimizer = build(kind, mesh)
    group = None if mesh is None else mesh.get_group()
    if model_first:
        load(folder, group, model=(weights := get_model_state_dict(model)))
        set_model_state_dict(model, weights)
        # To fill the state, torch takes a step of length zero.
        load(folder, group, optimizer=(state := get_optimizer_state_dict(model, optimizer)))
        set_optimizer_state_dict(model, optimizer, state)
    else:
        weights, state = get_state_dict(model, optimizer)
        load(folder, group, model=weights, optimizer=state)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=state)
    assert isinstance(model[0].weight.manifold, LowRankUnitary)
    train(model, optimizer, 3, 3)
    assert orthogonality_errors(model, exact=True)["0.weight"] < 1e-12
    return [full(p).tolist() for p in model.parameters()], digest(*map(full, model.parameters()))


def resume_model_first(kind, folder, size):
    return resume(kind, folder, size, model_first=True)


@pytest.fixture(scope="module", params=KINDS)
def saved(world, request, tmp_path_factory):
    folder = str(tmp_path_factory.mktemp(request.param))
    return request.param, folder, world.run(save, request.param, folder)[0]


def assert_close(values, expected):
    for value, other in zip(values, expected, strict=True):
        torch.testing.assert_close(torch.tensor(value), torch.tensor(other), rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", [resume, resume_model_first])
@pytest.mark.parametrize("size", [4, 2])
def test_other_processes_resume(world, saved, size, how):
    kind, folder, (expected, end) = saved
    results = [result for result in world.run(how, kind, folder, size) if result]
    assert len(results) == size
    for values, own_end in results:
        assert_close(values, expected)
        assert size != 4 or own_end == end


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")
def test_one_process_resumes_with_whole_matrices(saved):
    kind, folder, (expected, _) = saved
    values, _ = resume(kind, folder, 1)
    assert_close(values, expected)
