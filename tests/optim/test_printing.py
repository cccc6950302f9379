"""What an optimizer prints as, in a notebook and elsewhere."""

import geoopt
import pytest
import torch

from geoopt_projunn import (
    LowRankStiefel,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
    param_groups,
)

from ._helpers import OPTIMIZERS, unitary_parameter


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.square = unitary_parameter(4, 4, k=2)
        tall = LowRankStiefel(1, sweep=0)
        self.tall = geoopt.ManifoldParameter(tall.random(6, 4), manifold=tall)
        self.ball = geoopt.ManifoldParameter(torch.zeros(3), manifold=geoopt.PoincareBall())
        self.linear = torch.nn.Linear(3, 5)


def test_it_tells_what_is_not_the_default_and_which_parameter_is_on_which_manifold():
    groups = param_groups(Model(), lr=0.1, angle=0.3)
    optimizer = ProjUNNRiemannianSGD(groups, momentum=0.9, nesterov=True)
    assert repr(optimizer) == (
        "ProjUNNRiemannianSGD(\n"
        "  group 0: lr=0.3, momentum=0.9, nesterov=True, normalize=angle\n"
        "    on LowRankUnitary(k=2, retraction=exponential, sketch=tangent): square 4×4\n"
        "    on LowRankStiefel(k=1, retraction=exponential, sketch=tangent, sweep=0): tall 6×4\n"
        "  group 1: lr=0.1, momentum=0.9, nesterov=True\n"
        "    on PoincareBall: ball 3\n"
        "    plain: 2 parameters, 20 numbers\n"
        ")"
    )


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_without_names_it_tells_shapes_and_of_many_a_few(kind):
    optimizer = kind([unitary_parameter(4, 4) for _ in range(40)], lr=0.5)
    on = "on LowRankUnitary(k=1, retraction=exponential, sketch=tangent)"
    shown = ", ".join(["4×4"] * 6)
    assert repr(optimizer).splitlines()[1:-1] == [
        "  group 0: lr=0.5",
        f"    {on}: {shown} and 34 more",
    ]


def test_it_follows_a_schedule_and_takes_rates_in_tensors():
    optimizer = ProjUNNRiemannianAdam([unitary_parameter(4, 4)], lr=torch.tensor(0.5))
    torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5)
    assert "group 0: lr=0.25" in repr(optimizer)


def test_a_subclass_that_passes_options_on_prints_them():
    class Mine(ProjUNNRiemannianAdam):
        def __init__(self, params, **options):
            super().__init__(params, **options)

    printed = repr(Mine(Model().parameters(), lr=0.25, amsgrad=True))
    assert "group 0: lr=0.25, amsgrad=True" in printed
