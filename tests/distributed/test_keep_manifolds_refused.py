"""What lies in ways that steps do not know is refused, by keep_manifolds or by the step."""

import geoopt
import pytest
import torch
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Replicate,
    Shard,
    distribute_tensor,
)

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.distributed import keep_manifolds
from geoopt_projunn.nn import (
    orthogonalize_,
)

from ._meshes import local, mesh_of
from .test_steps import parameter


def refuse():
    mesh, tiles = mesh_of((4,)), mesh_of((2, 2))
    words = r"`weight` on the LowRankUnitary\(k=.*{}.*build the model anew"

    def put(placed, k=1):
        layer = torch.nn.Linear(8, 8, bias=False)
        orthogonalize_(layer, "weight", k=k)
        with keep_manifolds(layer):
            layer.weight = torch.nn.Parameter(placed)

    with pytest.raises(ValueError, match=words.format("whole ones, got")):
        put(distribute_tensor(torch.eye(8), mesh, [Shard(0)]), k=None)
    with pytest.raises(ValueError, match=words.format("only by Shard and Replicate")):
        put(DTensor.from_local(torch.eye(8), mesh, [Partial()]))
    with pytest.raises(ValueError, match=words.format("each axis split over one dimension")):
        put(distribute_tensor(torch.eye(8), tiles, [Shard(0), Shard(0)]))
    layer = torch.nn.Linear(8, 8, bias=False)
    orthogonalize_(layer, "weight")
    flat = torch.nn.Sequential(layer)
    words = r"`0.weight` is on .*FullyShardedDataParallel"
    with pytest.raises(RuntimeError, match=words), keep_manifolds(flat):
        FullyShardedDataParallel(flat, device_id=torch.device("cpu"))
    return True


@pytest.mark.filterwarnings("ignore")
def test_what_steps_do_not_know_is_refused_at_the_end_of_the_context(world):
    assert all(world.run(refuse))


class Other(torch.Tensor):
    pass


@pytest.mark.parametrize(
    ("successor", "error", "words"),
    [
        (torch.eye(4).as_subclass(Other), TypeError, "must be a torch.nn.Parameter.* got Other"),
        (torch.ones(4), ValueError, r"`frame` is on the .*Stiefel.* does not fit: .*Keep this"),
    ],
)
def test_a_successor_that_cannot_be_on_the_manifold_is_refused(successor, error, words):
    model = torch.nn.Module()
    model.frame = geoopt.ManifoldParameter(torch.eye(4), manifold=geoopt.EuclideanStiefel())
    with pytest.raises(error, match=words), keep_manifolds(model):
        model.frame = torch.nn.Parameter(successor)


def mismatched():
    """Each of these is refused before anything moves."""
    mesh, tiles = mesh_of((4,)), mesh_of((2, 2))
    plain = torch.nn.Parameter(torch.ones(3))
    eye, manifold = torch.eye(8), LowRankUnitary(k=2)
    rows = distribute_tensor(eye, mesh, [Shard(0)])
    cases = [
        (rows, eye, {}, TypeError, r"`grad` of parameter `w` .* must be a DTensor like it, got Te"),
        (eye, rows, {}, TypeError, r"`grad` of parameter `w` .* must be a plain tensor like it"),
        (
            rows,
            distribute_tensor(eye, tiles, [Replicate(), Shard(0)]),
            {},
            ValueError,
            r"`grad` of parameter `w` .* must be on its mesh, .* \(4,\), got .*\(2, 2\)",
        ),
        (
            DTensor.from_local(eye / 4, mesh, [Partial()]),
            rows,
            {},
            ValueError,
            r"Parameter `w` .* must be placed only by Shard and Replicate, got \(Partial",
        ),
        (
            rows,
            rows,
            {"momentum_buffer": eye.clone()},
            ValueError,
            r"`momentum_buffer` in the state of parameter `w` .* got a tensor that is whole.*set",
        ),
    ]
    for x, grad, state, error, words in cases:
        p = parameter(x, manifold)
        optimizer = ProjUNNRiemannianSGD([("plain", plain), ("w", p)], lr=0.1, momentum=0.9)
        p.grad, plain.grad = rows.clone() if state else grad, torch.ones(3)
        if state:
            optimizer.step()
            optimizer.state[p].update(state)
            with torch.no_grad():
                plain.fill_(1)
        before = {q: local(q.detach()).clone() for q in (p, plain)}
        with pytest.raises(error, match=words):
            optimizer.step()
        assert all(torch.equal(local(q.detach()), value) for q, value in before.items())
    return True


def test_parameter_gradient_and_state_must_be_placed_the_same_way(world):
    assert all(world.run(mismatched))
