"""State of other optimizers, of other libraries and of users."""

import copy
import pickle

import geoopt
import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.nn import OrthogonalRNN

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_within,
    feed,
    gradients,
    on_manifold,
    unitary_parameter,
)

SETTINGS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 0.05}),
    "momentum": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "elementwise"}),
    "scalar": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "scalar", "amsgrad": True}),
}
each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS.values(), ids=SETTINGS.keys())


class Mixed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.turn = unitary_parameter(6, 6)
        self.sphere = geoopt.ManifoldParameter(geoopt.Sphere().random(6))
        self.plain = torch.nn.Linear(6, 2)

    def forward(self, x):
        return self.plain((x @ self.turn) * self.sphere)


def train(model, optimizer, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        optimizer.zero_grad()
        model(torch.randn(8, 6, generator=generator)).square().sum().backward()
        optimizer.step()


# -- torch.distributed.checkpoint ----------------------------------------------------------


@pytest.mark.parametrize("flatten", [False, True])
@each_setting
def test_distributed_checkpoints_resume_bit_for_bit(kind, options, flatten):
    how = StateDictOptions(flatten_optimizer_state_dict=flatten)
    model = Mixed()
    optimizer = kind(model.parameters(), **options)
    train(model, optimizer, range(3))
    saved = copy.deepcopy(get_state_dict(model, optimizer, options=how))
    train(model, optimizer, range(3, 6))

    other = Mixed()
    resumed = kind(other.parameters(), **options)
    set_state_dict(
        other, resumed, model_state_dict=saved[0], optim_state_dict=saved[1], options=how
    )
    train(other, resumed, range(3, 6))
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_bits(p, q)


@each_setting
def test_every_parameter_that_has_stepped_has_a_state(kind, options):
    model = Mixed()
    optimizer = kind(model.parameters(), **options)
    train(model, optimizer, range(1))
    assert all(optimizer.state[p] for p in model.parameters())
    saved = get_optimizer_state_dict(model, optimizer)
    assert saved["state"].keys() == dict(model.named_parameters()).keys()
    set_optimizer_state_dict(model, optimizer, saved)


# -- other optimizers ----------------------------------------------------------------------


def adam_run(kind, model, seeds, **options):
    optimizer = kind(model.parameters(), lr=0.01, **options)
    train(model, optimizer, seeds)
    return optimizer


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float64, {"second_moment": "scalar"}),
        (torch.float64, {"second_moment": "mean", "amsgrad": True}),
        # torch keeps the squares of real and imaginary parts apart.
        (torch.complex128, {}),
    ],
)
def test_a_state_of_which_a_part_is_missing_is_begun_afresh(dtype, options):
    start = LowRankUnitary().random(6, 6, dtype=dtype)
    p, q = on_manifold(start), on_manifold(start)
    grads = gradients(p, 4)
    theirs = torch.optim.Adam([p], lr=0.0)
    feed(theirs, p, grads[:3])
    ours = ProjUNNRiemannianAdam([p], lr=0.01, **options)
    ours.load_state_dict({**ours.state_dict(), "state": theirs.state_dict()["state"]})
    for optimizer, parameter in (ours, p), (ProjUNNRiemannianAdam([q], lr=0.01, **options), q):
        feed(optimizer, parameter, grads[3:])
    assert_same_bits(p, q)


@pytest.mark.parametrize("number", [int, float])
def test_a_state_of_torchs_adam_is_taken_over_also_of_old_torch(number):
    """Steps of a plain parameter go on as torch's; moments of a matrix are those it had."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 6), torch.nn.Linear(6, 2))
    with torch.no_grad():
        torch.nn.init.orthogonal_(model[0].weight)
    theirs = adam_run(torch.optim.Adam, model, range(4))
    ours = copy.deepcopy(model)
    ours[0].weight = geoopt.ManifoldParameter(
        LowRankUnitary().projx(model[0].weight.detach()), manifold=LowRankUnitary()
    )
    saved = copy.deepcopy(theirs.state_dict())
    for state in saved["state"].values():
        state["step"] = number(state["step"])
    optimizer = ProjUNNRiemannianAdam(ours.parameters(), lr=0.01, second_moment="elementwise")
    optimizer.load_state_dict(saved)
    before = copy.deepcopy(optimizer.state[ours[0].weight])
    (grad,) = gradients(ours[0].weight, 1)
    for net, opt in ((ours, optimizer), (model, theirs)):
        net[0].weight.grad = grad.clone()
        for p in (net[0].bias, net[1].weight, net[1].bias):
            p.grad = torch.ones_like(p)
        opt.step()
    assert_same_bits(ours[1].weight, model[1].weight)
    state = optimizer.state[ours[0].weight]
    assert state["step"] == 5
    assert state["step"].dtype == torch.int64
    assert_within(state["exp_avg"], before["exp_avg"].lerp(grad, 0.1), 1e-7)
    assert_within(state["exp_avg_sq"], before["exp_avg_sq"].lerp(grad**2, 1e-3), 1e-7)


def test_a_state_of_geoopts_adam_is_taken_over():
    model = Mixed()
    theirs = adam_run(geoopt.optim.RiemannianAdam, model, range(4))
    assert isinstance(theirs.state[model.plain.weight]["step"], int)
    optimizer = ProjUNNRiemannianAdam(model.parameters(), lr=0.01, second_moment="elementwise")
    optimizer.load_state_dict(copy.deepcopy(theirs.state_dict()))
    train(model, optimizer, range(4, 8))
    assert optimizer.state[model.turn]["step"] == 8
    assert optimizer.state[model.plain.weight]["step"] == 8
    assert optimizer.state[model.sphere]["step"] == 8
    assert LowRankUnitary().orthogonality_error(model.turn) < 1e-5


@pytest.mark.parametrize("dampening", [0.0, 0.5])
def test_a_momentum_buffer_of_torchs_sgd_is_taken_over(dampening):
    options = {"lr": 0.05, "momentum": 0.9, "dampening": dampening}
    p = unitary_parameter(6, 6, dtype=torch.float64)
    q = torch.nn.Parameter(p.detach().clone())
    theirs = torch.optim.SGD([q], **options)
    feed(theirs, q, gradients(q, 3))
    ours = ProjUNNRiemannianSGD([p], **options)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()))
    grads = gradients(p, 2)
    feed(ours, p, grads)
    feed(theirs, q, grads)
    assert_within(ours.state[p]["momentum_buffer"], theirs.state[q]["momentum_buffer"], 1e-13)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_of_another_shape_is_begun_anew(kind):
    p = unitary_parameter(2, 6, 6)
    q = on_manifold(p.detach())
    optimizer = kind([p], lr=0.01)
    optimizer.state[p].update(step=3, exp_avg=torch.ones(6), momentum_buffer=torch.ones(6))
    fresh = kind([q], lr=0.01)
    for opt, x in ((optimizer, p), (fresh, q)):
        x.grad = torch.ones_like(x)
        opt.step()
    assert_same_bits(p, q)


# -- entries of users and wrappers -------------------------------------------------------


@pytest.mark.parametrize("entry", [{"count": 3}, 7, None, torch.ones(2)])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_foreign_entry_of_the_state_is_carried_along(kind, entry):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.01)
    optimizer.state["wrapper"] = entry
    feed(optimizer, p, gradients(p, 2))
    assert optimizer.skipped_steps == 0
    assert optimizer.skipped_steps_by_parameter() == {0: 0}
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert str(other.state["wrapper"]) == str(entry)
        (q,) = other.param_groups[0]["params"]
        feed(other, q, gradients(q, 1))
    loaded = kind([p], lr=0.01)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    feed(loaded, p, gradients(p, 1))
    assert str(loaded.state["wrapper"]) == str(entry)


@pytest.mark.parametrize("entry", [3, "text", torch.ones(5), [torch.ones(2)]])
@pytest.mark.usefixtures("each_way")
@each_setting
def test_a_foreign_value_in_the_state_of_a_matrix_is_left_alone(kind, options, entry):
    params = [unitary_parameter(6, 6), unitary_parameter(6, 6)]
    others = [on_manifold(p.detach()) for p in params]
    optimizer, expected = kind(params, **options), kind(others, **options)
    optimizer.state[params[1]]["note"] = entry
    for _ in range(3):
        for p, q in zip(params, others, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        optimizer.step()
        expected.step()
    assert optimizer.state[params[1]]["note"] is entry
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-6)


@pytest.mark.parametrize("place", ["plain", "sphere"])
@each_setting
def test_what_a_user_puts_into_an_empty_state_is_left_alone(kind, options, place):
    """torch and geoopt begin a state only if it is empty."""
    model, apart = Mixed(), Mixed()
    apart.load_state_dict(model.state_dict())
    optimizer, expected = (kind(m.parameters(), **options) for m in (model, apart))
    p = model.plain.weight if place == "plain" else model.sphere
    note = p.detach().clone()
    optimizer.state[p]["old_p"] = note
    for net, opt in ((model, optimizer), (apart, expected)):
        train(net, opt, range(3))
    for p, q in zip(model.parameters(), apart.parameters(), strict=True):
        assert_same_bits(p, q)
    assert any(entries.get("old_p") is note for entries in optimizer.state.values())


@pytest.mark.parametrize("first", OPTIMIZERS)
def test_the_state_of_the_other_optimizer_may_be_loaded(first):
    second = next(kind for kind in OPTIMIZERS if kind is not first)
    model = Mixed()
    options = {ProjUNNRiemannianSGD: {"momentum": 0.9}, ProjUNNRiemannianAdam: {}}
    optimizer = first(model.parameters(), lr=0.01, **options[first])
    train(model, optimizer, range(3))
    other = second(model.parameters(), lr=0.01, **options[second])
    groups = copy.deepcopy(other.state_dict()["param_groups"])
    other.load_state_dict({**copy.deepcopy(optimizer.state_dict()), "param_groups": groups})
    before = [p.detach().clone() for p in model.parameters()]
    train(model, other, range(3, 5))
    for p, value in zip(model.parameters(), before, strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, value)


def test_a_model_without_values_is_resumed_by_distributed_checkpoints():
    """They take a step of length 0 before they load, from whatever is in memory."""
    model = OrthogonalRNN(3, 6)
    optimizer = ProjUNNRiemannianAdam(model.parameters(), lr=0.01)
    model(torch.randn(5, 2, 3))[0].square().sum().backward()
    optimizer.step()
    saved = copy.deepcopy(get_state_dict(model, optimizer))
    other = OrthogonalRNN(3, 6).to("meta").to_empty(device="cpu")
    with torch.no_grad():
        for p in other.parameters():
            p.fill_(0.5)
    resumed = ProjUNNRiemannianAdam(other.parameters(), lr=0.01)
    get_state_dict(other, resumed)
    set_state_dict(other, resumed, model_state_dict=saved[0], optim_state_dict=saved[1])
    for net, opt in ((model, optimizer), (other, resumed)):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        opt.step()
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_point_that_is_off_is_refused_when_the_length_is_no_longer_zero(kind):
    p = on_manifold(2 * torch.eye(6))
    optimizer = kind([p], lr=0.0)
    feed(optimizer, p, gradients(p, 2))
    optimizer.param_groups[0]["lr"] = 0.1
    with pytest.raises(ValueError, match="must satisfy xᴴx = I"):
        feed(optimizer, p, gradients(p, 1))
