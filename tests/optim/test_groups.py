"""Groups for steps in radians."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, param_groups

from ._helpers import OPTIMIZERS, unitary_parameter


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        manifold, sphere = LowRankStiefel(1), geoopt.Sphere()
        self.plain = torch.nn.Linear(3, 4)
        self.square = unitary_parameter(2, 6, 6, k=2)
        self.tall = geoopt.ManifoldParameter(manifold.random(6, 3), manifold=manifold)
        self.round = geoopt.ManifoldParameter(sphere.random(2, 3), manifold=sphere)


@pytest.mark.parametrize("normalize", ["angle", "spectral"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_orthogonal_parameters_step_in_radians_and_the_others_as_ever(kind, normalize):
    model = Model()
    optimizer = kind(param_groups(model, lr=1e-3, angle=0.4, normalize=normalize))
    radians, others = optimizer.param_groups
    assert (radians["lr"], radians["normalize"]) == (0.4, normalize)
    assert (others["lr"], others["normalize"]) == (1e-3, None)
    assert radians["param_names"] == ["square", "tall"]
    assert others["param_names"] == ["round", "plain.weight", "plain.bias"]
    start = model.square.detach().clone()
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    turned = torch.linalg.eigvals((model.square.detach() @ start.mT).double()).angle()
    largest = turned.abs().sort(dim=-1).values[:, -4:]
    assert largest.square().mean(-1).sqrt().sub(0.4).abs().max() < 1e-2
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5)
    assert schedule.get_last_lr() == pytest.approx([0.2, 5e-4])


def test_a_group_without_parameters_is_left_out():
    model = torch.nn.Module()
    model.weight = unitary_parameter(4, 4)
    (group,) = param_groups(model, lr=1e-3, angle=0.4)
    assert group["normalize"] == "angle"


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"lr": -1.0}, ValueError, "`lr` must lie in"),
        ({"angle": -1.0}, ValueError, "`angle` must lie in"),
        ({"angle": "0.5"}, TypeError, "`angle` must be a number"),
        ({"normalize": None}, ValueError, "`normalize` must be 'angle' or 'spectral', got None"),
    ],
)
def test_what_is_out_of_range_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        param_groups(Model(), **{"lr": 1e-3, "angle": 0.4, **options})


def test_a_model_without_orthogonal_parameters_is_refused():
    with pytest.raises(
        ValueError, match=r"`model` must have a parameter on LowRankUnitary.*Linear"
    ):
        param_groups(torch.nn.Linear(2, 3), lr=1e-3, angle=0.4)
