"""Batches, blocks and rectangles whose parts lie on several processes."""

import geoopt
import pytest
import torch

from geoopt_projunn import (
    LowRankStiefel,
    LowRankUnitary,
    ProjUNNRiemannianSGD,
    diagnose,
    kept_fraction,
)

from ._meshes import placed
from .test_steps import parameter

SHAPES = {
    # Two processes have 2 matrices each, one has 1 and one has none.
    "a batch, some on each": (LowRankUnitary(k=2), (5, 8, 8), "rows of 4"),
    "a batch, rows of each": (LowRankUnitary(k=2), (3, 10, 10), "columns of 3"),
    "a batch, tiles": (LowRankUnitary(k=1), (3, 8, 8), "tiles"),
    "fewer rows than processes": (LowRankUnitary(k=1), (3, 3), "rows of 4"),
    "blocks": (LowRankUnitary(k=2, blocks=3), (24, 8), "columns of 3"),
    "tall": (LowRankStiefel(k=2), (18, 7), "rows of 3"),
    "tall, columns": (LowRankStiefel(k=1, sketch="lsi"), (18, 7), "columns of 4"),
    # Of its rows alone each process would take k = 3.
    "rank by size": (LowRankStiefel(), (18, 7), "rows of 4"),
    "wide": (LowRankStiefel(k=2), (7, 18), "rows of 3"),
    "wide, tiles": (LowRankStiefel(k=1, sketch="column"), (7, 18), "tiles"),
}


def descend(p, target, steps=6, **options):
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, **options)
    for _ in range(steps):
        p.grad = p.detach() - target
        optimizer.step()
    return optimizer


def full(t):
    return t.full_tensor() if hasattr(t, "placements") else t


def compare(name, options):
    manifold, shape, placing = SHAPES[name]
    x = manifold.random(*shape, dtype=torch.float64).as_subclass(torch.Tensor)
    target = torch.randn(shape, dtype=torch.float64)
    p = placed(x.clone(), placing)
    if p is None:
        return None
    whole, p = geoopt.ManifoldParameter(x.clone(), manifold=manifold), parameter(p, manifold)
    one = descend(whole, target, **options)
    other = descend(p, placed(target, placing), **options)
    errors = [(p.full_tensor() - whole).abs().max()]
    for key, value in one.state[whole].items():
        assert full(other.state[p][key]).shape == value.shape
        errors.append((full(other.state[p][key]) - value).abs().max())
    measured = manifold.orthogonality_error(p) - manifold.orthogonality_error(whole)
    estimates = manifold.estimate_orthogonality_error(p)
    errors += [measured.abs().max(), estimates.max()]
    return float(max(errors)), float((whole - x).abs().max()), list(estimates.shape)


@pytest.mark.parametrize("options", [{"momentum": 0.9}, {"momentum": 0.5, "error_feedback": 0.9}])
@pytest.mark.parametrize("name", SHAPES)
def test_steps_of_parts_are_those_of_the_whole(world, name, options):
    manifold, shape, _ = SHAPES[name]
    of_each = [shape[0], *shape[1:-2]] if len(shape) > 2 else []
    of_each += [manifold.blocks] if manifold.blocks > 1 else []
    results = [result for result in world.run(compare, name, options) if result]
    assert len(results) >= 3
    for error, moved, batch in results:
        assert error < 1e-9
        assert moved > 0.01
        assert batch == of_each


def skip():
    """Skip the step of one matrix of a batch, of which each process has some."""
    manifold, shape, placing = SHAPES["a batch, some on each"]
    x = manifold.random(*shape, dtype=torch.float64).as_subclass(torch.Tensor)
    p = parameter(placed(x.clone(), placing), manifold)
    grad = torch.randn(shape, dtype=torch.float64)
    grad[3, 0, 0] = torch.nan
    p.grad = placed(grad, placing)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, momentum=0.9)
    optimizer.step()
    stayed = (p.full_tensor() == x).flatten(1).all(1).tolist()
    return stayed, optimizer.skipped_steps, full(optimizer.state[p]["skipped"]).tolist()


@pytest.mark.filterwarnings("ignore")
def test_a_matrix_of_a_batch_in_parts_skips_alone(world):
    for stayed, skipped, of_each in world.run(skip):
        assert stayed == [False, False, False, True, False]
        assert skipped == 1
        assert of_each == [0, 0, 0, 1, 0]


def diagnosed():
    manifold = LowRankUnitary(k=2)
    x = manifold.random(12, 12, dtype=torch.float64).as_subclass(torch.Tensor)
    grad = torch.randn(12, 12, dtype=torch.float64)
    p = parameter(placed(x.clone(), "rows of 4"), manifold)
    p.grad = placed(grad, "rows of 4")
    module = torch.nn.Module()
    module.weight = p
    (one,) = diagnose(module)
    whole = geoopt.ManifoldParameter(x, manifold=manifold)
    return one.kept, kept_fraction(whole, grad, (2,))[2]


def test_a_matrix_in_parts_is_diagnosed_as_a_whole(world):
    for kept, expected in world.run(diagnosed):
        assert kept == pytest.approx(expected)


def project():
    manifold = LowRankUnitary()
    x = torch.randn(9, 9)
    p = parameter(placed(x.clone(), "rows of 4"), manifold)
    with torch.no_grad():
        y = manifold.projx(p)
    assert y.placements == p.placements
    return float((y.full_tensor() - manifold.projx(x)).abs().max())


def test_a_matrix_in_parts_is_projected_as_a_whole(world):
    for error in world.run(project):
        assert error < 1e-6
