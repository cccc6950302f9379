"""Groups for steps in radians."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD, param_groups
from geoopt_projunn.nn import OrthogonalGRU, OrthogonalGRUCell, OrthogonalRNN, orthogonalize_

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
        ({"normalize": None}, ValueError, "`normalize` must be one of 'angle', 'spectral', got"),
        ({"angle": None}, ValueError, "One of `steps` and `angle` must be given, got neither"),
        ({"steps": 100}, ValueError, "One of `steps` and `angle` must be given, got both"),
        ({"angle": None, "steps": 0}, ValueError, "`steps` must be at least 1, got 0; or pass `a"),
        (
            {"angle": None, "steps": 9, "sequence_length": 0},
            ValueError,
            "`sequence_length` must be at least 1, got 0; leave it out if no",
        ),
        ({"sequence_length": 50}, ValueError, "`sequence_length` must be None with `angle`"),
        (
            {"angle": None, "steps": 100, "sequence_length": 50},
            ValueError,
            "without an orthogonal parameter whose name begins with weight_hh, weight_gates",
        ),
    ],
)
def test_what_is_out_of_range_is_refused(options, error, match):
    with pytest.raises(error, match=match):
        param_groups(Model(), **{"lr": 1e-3, "angle": 0.4, **options})


def test_a_model_without_orthogonal_parameters_is_refused():
    with pytest.raises(
        ValueError, match=r"`model` must have a parameter on LowRankUnitary.*Linear"
    ):
        param_groups(torch.nn.Linear(2, 3), lr=1e-3, steps=400)


def on(manifold, *shape, **options):
    return geoopt.ManifoldParameter(manifold.random(*shape, **options), manifold=manifold)


def angle_of(p, steps, **options):
    module = torch.nn.Module()
    module.weight = p
    (group,) = param_groups(module, lr=0.1, steps=steps, **options)
    return group["lr"]


# 5 m / (kT) of n x p matrices: m is n, or 2p if less; k="auto" is 8 or the highest; all planes are
# m / 2 of them; twice that of coordinates; 0.75 at most.
ANGLES = {
    "square": (LowRankUnitary(), (64, 64), {}, 200, 0.2),
    "small": (LowRankUnitary(), (6, 6), {}, 100, 0.1),
    "rank 1": (LowRankUnitary(1), (64, 64), {}, 1000, 0.32),
    "few steps": (LowRankUnitary(1), (64, 64), {}, 200, 0.75),
    "full rank": (LowRankUnitary(None), (64, 64), {}, 200, 0.05),
    "odd, full rank": (LowRankUnitary(None), (5, 5), {}, 200, 0.05),
    "of one row": (LowRankUnitary(), (1, 1), {}, 100, 0.1),
    "tall": (LowRankStiefel(), (256, 16), {}, 400, 0.05),
    "wide": (LowRankStiefel(), (16, 256), {}, 400, 0.05),
    "wide, rank 4": (LowRankStiefel(4), (32, 64), {}, 1000, 0.08),
    "rectangle, full rank": (LowRankStiefel(None), (256, 16), {}, 400, 0.025),
    "complex": (LowRankUnitary(), (64, 64), {"dtype": torch.complex64}, 200, 0.2),
    "batch": (LowRankUnitary(), (3, 2, 64, 64), {}, 200, 0.2),
    "blocks": (LowRankUnitary(blocks=4), (256, 64), {}, 200, 0.2),
    "coordinates": (LowRankUnitary(4, sketch="coordinates"), (64, 64), {}, 400, 0.4),
    "no coordinates": (LowRankUnitary(None, sketch="coordinates"), (64, 64), {}, 200, 0.05),
}


@pytest.mark.parametrize("normalize", ["angle", "spectral"])
@pytest.mark.parametrize("case", ANGLES)
def test_the_angle_of_a_number_of_steps(case, normalize):
    manifold, shape, options, steps, expected = ANGLES[case]
    p = on(manifold, *shape, **options)
    assert angle_of(p, steps, normalize=normalize) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_of_one_angle_share_a_group(kind):
    model = torch.nn.Module()
    model.first, model.small = on(LowRankUnitary(4), 32, 32), on(LowRankUnitary(4), 16, 16)
    model.plain = torch.nn.Linear(3, 4)
    # 5·32 / (4·800) = 5·16 / (2·800), and 5·16 / (4·800).
    model.like_first = on(LowRankStiefel(2), 16, 8)
    optimizer = kind(param_groups(model, lr=1e-3, steps=800))
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["first", "like_first"], ["small"], ["plain.weight", "plain.bias"]]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.025, 1e-3])
    assert [group["normalize"] for group in optimizer.param_groups] == ["angle", "angle", None]
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    start = model.small.detach().clone()
    optimizer.step()
    turned = torch.linalg.eigvals((model.small.detach() @ start.mT).double()).angle()
    assert turned.abs().sort().values[-8:].square().mean().sqrt() == pytest.approx(0.025, rel=0.01)


def schedules(steps):
    falling = torch.optim.lr_scheduler
    return {
        "linear": lambda optimizer: falling.LinearLR(optimizer, 1.0, 0.0, total_iters=steps),
        "cosine": lambda optimizer: falling.CosineAnnealingLR(optimizer, steps),
        "lambda": lambda optimizer: falling.LambdaLR(optimizer, lambda step: 1 - step / steps),
        "one cycle": lambda optimizer: falling.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=steps + 1,
            pct_start=0.0,
            cycle_momentum=False,
            final_div_factor=1e30,
        ),
    }


@pytest.mark.filterwarnings("ignore:Detected call of:UserWarning")
@pytest.mark.parametrize("schedule", schedules(100))
def test_a_schedule_keeps_the_ratio_of_the_rates_and_ends_at_zero(schedule):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(4, 4))
    for layer, k in zip(model, (4, 1), strict=True):
        orthogonalize_(layer, "weight", k=k)
    optimizer = ProjUNNRiemannianSGD(param_groups(model, lr=0.3, steps=100))
    rates = [[group["lr"] for group in optimizer.param_groups]]
    assert rates[0] == pytest.approx([0.1, 0.2, 0.3])
    made = schedules(100)[schedule](optimizer)
    for _ in range(100):
        made.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    for of_small, of_large, of_plain in rates:
        assert (of_large, of_plain) == pytest.approx((2 * of_small, 3 * of_small), abs=1e-12)
    # Each plane turns by 5 radians in all: a step turns 4 of 4 here, and 1 of 2.
    assert sum(rate for rate, *_ in rates) == pytest.approx(5.0, abs=0.06)
    assert sum(rate / 2 for _, rate, _ in rates) == pytest.approx(5.0, abs=0.06)
    assert rates[-1] == pytest.approx([0.0, 0.0, 0.0], abs=1e-12)


@pytest.mark.parametrize(("length", "expected"), [(50, 0.02), (3, 0.2)])
def test_a_recurrent_weight_turns_by_at_most_one_over_the_length(length, expected):
    lstm, plain = torch.nn.LSTM(3, 64), torch.nn.Linear(64, 64)
    orthogonalize_(lstm, "weight_hh_l0", blocks=4)
    orthogonalize_(plain, "weight")
    model = torch.nn.ModuleDict({"rnn": OrthogonalRNN(3, 64), "lstm": lstm, "plain": plain})
    groups = param_groups(model, lr=1e-3, steps=200, sequence_length=length)
    rates = {name: group["lr"] for group in groups for name, _ in group["params"]}
    assert rates["rnn.weight_hh_l0"] == rates["lstm.weight_hh_l0"] == pytest.approx(expected)
    assert rates["plain.weight"] == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("build", "recurrent", "of_inputs"),
    [
        (lambda: OrthogonalGRU(64, 64), {"weight_hh_l0": 1, "weight_gates_l0": 2}, 3),
        (lambda: OrthogonalGRUCell(64, 64), {"weight_hh": 1, "weight_gates": 2}, 3),
        (lambda: torch.nn.LSTM(32, 64, proj_size=32), {"weight_hr_l0": 1, "weight_hh_l0": 4}, 4),
    ],
)
def test_every_weight_that_acts_on_the_state_is_recurrent_and_those_of_inputs_are_not(
    build, recurrent, of_inputs
):
    layer = build()
    first = next(name for name, _ in layer.named_parameters() if name.startswith("weight_ih"))
    for name, blocks in {**recurrent, first: of_inputs}.items():
        orthogonalize_(layer, name, blocks=blocks)
    groups = param_groups(layer, lr=1e-3, steps=200, sequence_length=50)
    rates = {name: group["lr"] for group in groups for name, _ in group["params"]}
    assert [rates[name] for name in recurrent] == pytest.approx([0.02, 0.02])
    assert rates[first] == pytest.approx(0.2)


def tied():
    rnn = OrthogonalRNN(3, 64)
    model = torch.nn.ModuleDict({"first": torch.nn.Linear(64, 64, bias=False), "rnn": rnn})
    model["first"].weight = rnn.weight_hh_l0
    return model


def parametrized():
    cell = torch.nn.Module()
    cell.weight_hh = on(LowRankUnitary(), 64, 64)
    torch.nn.utils.parametrize.register_parametrization(cell, "weight_hh", torch.nn.Identity())
    return cell


def listed():
    layer = torch.nn.Module()
    layer.weight_hh = torch.nn.ParameterList([on(LowRankUnitary(), 64, 64)])
    return layer


@pytest.mark.parametrize("build", [tied, parametrized, listed])
def test_a_weight_is_recurrent_under_any_of_its_names(build):
    rate = param_groups(build(), lr=1e-3, steps=200, sequence_length=50)[0]["lr"]
    assert rate == pytest.approx(0.02)
    with pytest.raises(ValueError, match=r"`sequence_length` must be given.*weight_hh"):
        param_groups(build(), lr=1e-3, steps=200)


def test_a_recurrent_weight_needs_the_length():
    with pytest.raises(
        ValueError, match=r"`sequence_length` must be given with `steps`, because `0\.weight_hh_l0`"
    ):
        param_groups(torch.nn.Sequential(OrthogonalRNN(3, 8)), lr=1e-3, steps=100)


def test_what_is_no_point_is_refused():
    model = torch.nn.Module()
    model.weight = on(LowRankUnitary(4), 8, 8)
    model.weight.data = torch.randn(64)
    with pytest.raises(ValueError, match=r"must have shape \(\*, n, n\), got \(64,\)"):
        param_groups(model, lr=1e-3, steps=100)
