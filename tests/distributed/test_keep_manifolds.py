"""Whatever replaces parameters, they keep their manifolds inside of keep_manifolds."""

import copy

import geoopt
import pytest
import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import (
    DTensor,
    Shard,
    distribute_module,
)
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from geoopt_projunn import LowRankStiefel, ProjUNNRiemannianSGD
from geoopt_projunn.distributed import keep_manifolds
from geoopt_projunn.nn import (
    OrthogonalConv2d,
    OrthogonalRNN,
    orthogonality_errors,
    orthogonalize_,
)
from tests._able import broadcast_complex_numbers, skip_unless

from ._meshes import local, mesh_of


class Model(torch.nn.Module):
    """Modules of this package and of others, and points of several manifolds."""

    def __init__(self):
        super().__init__()
        self.rnn = OrthogonalRNN(3, 8, k=2)
        self.conv = OrthogonalConv2d(4, 4, (4, 5))
        self.linear = torch.nn.Linear(8, 8)
        orthogonalize_(self.linear, "weight", k=3)
        self.tied = torch.nn.Linear(8, 8, bias=False)
        self.tied.weight = self.linear.weight
        self.frame = geoopt.ManifoldParameter(LowRankStiefel(k=2).random(9, 4))
        self.directions = geoopt.ManifoldParameter(geoopt.Sphere().random(5, 4))

    def forward(self, x):
        hidden = self.tied(self.linear(self.rnn(x)[0]))
        image = self.conv(hidden.reshape(1, 4, 4, 5))
        return image.square().mean() + hidden.mean() + (self.frame @ self.directions.T).sum()


def manifolds(model):
    named = model.named_parameters(remove_duplicate=False)
    return {name: p.manifold for name, p in named if getattr(p, "manifold", None) is not None}


def shard(model, how):
    mesh = mesh_of((4,))
    with keep_manifolds(model):
        if how == "fully_shard":
            fully_shard([model.linear, model.tied], mesh=mesh)
            fully_shard(model.rnn, mesh=mesh)
            # FSDP wants real and complex parameters apart; geoopt's optimizers know no DTensors.
            ignored = {p for p in model.conv.parameters() if p.is_complex()} | {model.directions}
            fully_shard(model, mesh=mesh, ignored_params=ignored)
        elif how == "distribute_module":
            distribute_module(model, mesh)
        else:
            parallelize_module(model, mesh, {"linear": ColwiseParallel()})


def keep(how):
    model = Model()
    before = manifolds(model)
    shard(model, how)
    if how == "fully_shard":
        assert all(isinstance(p, DTensor) for p in model.rnn.parameters())
    assert isinstance(model.linear.weight, DTensor)
    kept = [manifolds(model) == before]
    model.double().float()
    kept.append(manifolds(model) == before)
    model.load_state_dict(copy.copy(model.state_dict()), assign=True)
    kept.append(manifolds(model) == before)
    model.to_empty(device="cpu")
    kept.append(manifolds(model) == before)
    return kept


@pytest.mark.parametrize("how", ["fully_shard", "distribute_module", "parallelize_module"])
def test_new_parameters_are_on_the_manifolds_of_those_that_they_replace(world, how):
    if how == "distribute_module":
        skip_unless(broadcast_complex_numbers)
    assert world.run(keep, how) == [[True] * 4] * 4


def train():
    model, whole = Model(), Model()
    whole.load_state_dict(model.state_dict())
    shard(model, "fully_shard")
    options = {"lr": 0.05, "momentum": 0.9}
    optimizers = [ProjUNNRiemannianSGD(m.parameters(), **options) for m in (model, whole)]
    for _ in range(4):
        x = torch.randn(5, 2, 3)
        for one, optimizer in zip((model, whole), optimizers, strict=True):
            optimizer.zero_grad()
            one(x).backward()
            optimizer.step()
    expected = dict(whole.named_parameters())
    errors = {
        name: (getattr(p, "full_tensor", lambda p=p: p)() - expected[name]).abs().max().item()
        for name, p in model.named_parameters()
    }
    assert all(hasattr(model.rnn.weight_hh_l0, name) for name in ("placements", "manifold"))
    exact = orthogonality_errors(model, exact=True)
    assert exact.keys() == orthogonality_errors(model).keys()
    return errors, max(exact.values()), optimizers[0].skipped_steps


def averages():
    layer = fully_shard(torch.nn.Linear(4, 2, bias=False), mesh=mesh_of((4,)))
    layer(torch.ones(1, 4)).sum().backward()
    return bool(layer.weight.grad.full_tensor().eq(1).all())


def test_a_model_in_parts_is_trained_as_a_whole_one(world):
    if not all(world.run(averages)):
        pytest.skip("fully_shard of this torch adds gradients up by gloo, without their average")
    for errors, off, skipped in world.run(train):
        assert max(errors.values()) < 1e-5, errors
        assert off < 1e-5
        assert skipped == 0


def on_another_manifold():
    model = Model()
    shard(model, "distribute_module")
    optimizer = ProjUNNRiemannianSGD(model.named_parameters(), lr=0.1)
    before = local(model.linear.weight.detach()).clone()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    with pytest.raises(TypeError, match=r"Parameter `directions` .* on Sphere .* must be whole"):
        optimizer.step()
    return torch.equal(local(model.linear.weight.detach()), before)


def test_a_dtensor_on_a_manifold_of_geoopt_is_refused_by_the_step(world):
    skip_unless(broadcast_complex_numbers)
    assert all(world.run(on_another_manifold))


def reduced():
    """Forward in bfloat16, points and their steps in float32."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.Linear(8, 2))
    orthogonalize_(model, "0.weight")
    with keep_manifolds(model):
        fully_shard(
            model, mesh=mesh_of((4,)), mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        )
    optimizer = ProjUNNRiemannianSGD(model.parameters(), lr=0.1)
    before = model[0].weight.full_tensor()
    for _ in range(3):
        optimizer.zero_grad()
        out = model(torch.randn(4, 8))
        out.float().square().mean().backward()
        optimizer.step()
    moved = float((model[0].weight.full_tensor() - before).abs().max().detach())
    return str(out.dtype), moved, orthogonality_errors(model, exact=True)["0.weight"]


def test_the_forward_pass_may_be_in_reduced_precision(world):
    for dtype, moved, off in world.run(reduced):
        assert dtype == "torch.bfloat16"
        assert moved > 1e-3
        assert off < 1e-5


def tensor_parallel():
    """Columns of one layer and rows of the next: the gradients come as they must be."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8))
    whole = copy.deepcopy(model)
    mesh = mesh_of((2,))
    for one in (model, whole):
        for name in ("0.weight", "2.weight"):
            orthogonalize_(one, name, k=2)
    if mesh is None:
        return 0.0
    with keep_manifolds(model):
        parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
    optimizers = [ProjUNNRiemannianSGD(m.parameters(), lr=0.1) for m in (model, whole)]
    for _ in range(3):
        x = torch.randn(4, 8)
        for one, optimizer in zip((model, whole), optimizers, strict=True):
            optimizer.zero_grad()
            one(x).square().sum().backward()
            optimizer.step()
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    return max(float((p.full_tensor() - q).abs().max().detach()) for p, q in pairs)


def test_tensor_parallel_layers_are_trained_as_whole_ones(world):
    assert max(world.run(tensor_parallel)) < 1e-5


def by_columns():
    """Stacked matrices, as the documentation splits them."""
    model, whole = (torch.nn.LSTM(3, 8) for _ in range(2))
    whole.load_state_dict(model.state_dict())
    for one in (model, whole):
        orthogonalize_(one, "weight_hh_l0", k=2, blocks=4)
    whole.load_state_dict(model.state_dict())
    with keep_manifolds(model):
        fully_shard(
            model,
            mesh=mesh_of((4,)),
            shard_placement_fn=lambda p: Shard(1 if p.ndim > 1 else 0),
            ignored_params={model.weight_ih_l0},
        )
    optimizers = [ProjUNNRiemannianSGD(m.parameters(), lr=0.1) for m in (model, whole)]
    for _ in range(3):
        x = torch.randn(5, 2, 3)
        for one, optimizer in zip((model, whole), optimizers, strict=True):
            optimizer.zero_grad()
            one(x)[0].square().sum().backward()
            optimizer.step()
    placed = model.weight_hh_l0.placements
    off = orthogonality_errors(model, exact=True)["weight_hh_l0"]
    far = (model.weight_hh_l0.full_tensor() - whole.weight_hh_l0).abs().max().item()
    return placed == (Shard(1),), off, far


def test_stacked_matrices_are_split_by_columns(world):
    if not all(world.run(averages)):
        pytest.skip("fully_shard of this torch adds gradients up by gloo, without their average")
    for is_split, off, far in world.run(by_columns):
        assert is_split
        assert off < 1e-5
        assert far < 1e-5
