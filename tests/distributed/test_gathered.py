"""FSDP leaves whole parameters behind after a forward pass; none on a manifold is overlooked."""

import geoopt
import pytest
import torch
from torch import distributed
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from geoopt_projunn import (
    LowRankUnitary,
    ProjUNNRiemannianSGD,
    diagnose,
    metrics,
    param_groups,
)
from geoopt_projunn.distributed import keep_manifolds
from geoopt_projunn.nn import (
    BlockOrthogonalConv1d,
    OrthogonalLinear,
    OrthogonalRNN,
    orthogonality_errors,
    orthogonalize_,
    project_,
)

from ._meshes import digest, mesh_of

NAMES = ["0.weight", "1.weight", "2.weight"]


class Own(torch.nn.Module):
    """A module of somebody else, which keeps no record of its manifolds."""

    def __init__(self):
        super().__init__()
        self.weight = geoopt.ManifoldParameter(LowRankUnitary(k=2).random(8, 8))
        self.weight.manifold = LowRankUnitary(k=2)

    def forward(self, x):
        return x @ self.weight.mT


def built(reshard):
    torch.manual_seed(3)
    model = torch.nn.Sequential(
        OrthogonalLinear(8, 8, k=2), Own(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    )
    orthogonalize_(model, "2.weight", k=2)
    with keep_manifolds(model):
        fully_shard(model, mesh=mesh_of((4,)), reshard_after_forward=reshard)
    return model


def loss_of(model, seed):
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(seed))
    return model(x).pow(4).mean()


def on_manifolds(model):
    return [name for name, p in model.named_parameters() if getattr(p, "manifold", None)]


def gathers():
    """Whether the outermost module keeps whole parameters, as the tests expect."""
    model = built(None)
    with torch.no_grad():
        loss_of(model, 0)
    return on_manifolds(model) == []


def looked_at(reshard):
    """Return what is found of a model between its passes, and what it then is."""
    model = built(reshard)
    with torch.no_grad():
        loss_of(model, 0)
    found = [list(orthogonality_errors(model))]
    with torch.no_grad():
        loss_of(model, 0)
    groups = param_groups(model, lr=0.1, angle=0.2)
    found.append([name for name, _ in groups[0]["params"]])
    loss_of(model, 0).backward()
    with torch.no_grad():
        loss_of(model, 0)
    found.append([one.name for one in diagnose(model)])
    return found, [isinstance(p, DTensor) for p in model.parameters()]


def projected(reshard):
    """Return how far off matrices are after project_, and how far the next forward pass is."""
    model = built(reshard)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
        far = loss_of(model, 0)
        project_(model)
        near = loss_of(model, 0)
        again = built(reshard)
        for p in list(again.parameters()):
            if not hasattr(p, "manifold"):
                p.mul_(1.5)
        expected = loss_of(again, 0)
    errors = orthogonality_errors(model, exact=True)
    return max(errors.values()), float(far / expected), float(near / expected)


def trained(reshard, watched):
    """Return the weights after steps of two passes each, with or without looks in between."""
    model = built(reshard)
    optimizer = ProjUNNRiemannianSGD(model.named_parameters(), lr=0.2, momentum=0.5)
    looks = []
    for step in range(3):
        optimizer.zero_grad()
        for part in range(2):
            model.set_requires_gradient_sync(part == 1)
            model.set_reshard_after_backward(part == 1)
            loss = loss_of(model, 2 * step + part)
            if watched:
                looks.append(list(metrics(model, optimizer)))
            loss.backward()
            if watched:
                looks.append(list(metrics(model, optimizer)))
        optimizer.step()
    weights = [p.full_tensor() for p in model.parameters()]
    return digest(*weights), looks


RESHARD = pytest.mark.parametrize("reshard", [None, False, True, 2])


def test_fsdp_leaves_whole_parameters_behind(world):
    """Else the tests below would test nothing."""
    assert all(world.run(gathers))


@RESHARD
def test_none_is_overlooked(world, reshard):
    for found, are_parts in world.run(looked_at, reshard):
        assert found == [NAMES] * 3
        assert all(are_parts)


@RESHARD
def test_what_is_projected_are_the_parts(world, reshard):
    for off, far, near in world.run(projected, reshard):
        assert off < 1e-5
        assert far > 1.5
        assert near == pytest.approx(1, rel=1e-4)


@RESHARD
def test_who_looks_changes_no_bit(world, reshard):
    """Between the passes, and where gradients of two passes add up."""
    plain, watched = world.run(trained, reshard, False), world.run(trained, reshard, True)
    assert {bits for bits, _ in plain + watched} == {plain[0][0]}
    errors, skips = (
        [f"{what}/{name}" for name in NAMES] for what in ("orthogonality_error", "skipped_steps")
    )
    for _, looks in watched:
        assert looks == [[*errors, *skips, "skipped_steps"]] * 12


def drawn(kind):
    """Return what a layer that was made without values has drawn, with seeds that differ."""
    torch.manual_seed(distributed.get_rank())
    with torch.device("meta"):
        model = torch.nn.Sequential(KINDS[kind]())
    with keep_manifolds(model):
        fully_shard(model, mesh=mesh_of((4,)))
    model.to_empty(device="cpu")
    model[0].reset_parameters()
    weights = [p.full_tensor() for p in model.parameters() if hasattr(p, "manifold")]
    return max(orthogonality_errors(model, exact=True).values()), digest(*weights)


KINDS = {
    "linear": lambda: OrthogonalLinear(9, 4),
    "recurrent": lambda: OrthogonalRNN(3, 8),
    "convolution": lambda: BlockOrthogonalConv1d(4, 4, 3),
}


@pytest.mark.filterwarnings("ignore:DTensor random operators")
@pytest.mark.parametrize("kind", KINDS)
def test_layers_that_were_made_without_values_draw_the_same_parts(world, kind):
    results = world.run(drawn, kind)
    assert max(off for off, _ in results) < 1e-5
    assert len({bits for _, bits in results}) == 1


def of_a_part():
    model = built(None)
    messages = []

    def look(*_):
        with pytest.raises(RuntimeError) as error:
            orthogonality_errors(model)
        messages.append(str(error.value))

    hook = model[1].register_forward_hook(look)
    with torch.no_grad():
        loss_of(model, 0)
    hook.remove()
    for function in (orthogonality_errors, project_):
        with pytest.raises(RuntimeError) as error:
            function(model[0])
        messages.append(str(error.value))
    model.reshard()
    return messages, list(orthogonality_errors(model[0]))


def test_a_part_of_a_gathered_model_is_refused(world):
    for messages, found in world.run(of_a_part):
        for message in messages:
            assert "weight` belongs on the LowRankUnitary(k=2" in message
            assert "Call this outside of the forward pass, for the outermost module" in message
        assert found == ["weight"]
