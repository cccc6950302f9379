"""Values that something else than the optimizer has changed."""

import copy
import warnings

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam
from geoopt_projunn.nn import OrthogonalRNN
from geoopt_projunn.optim import state, watch

from ._helpers import (
    OPTIMIZERS,
    feed,
    gradients,
    on_manifold,
    read_as_from_a_gpu,
    rotation,
    unitary_parameter,
)

STEPS = 100


def average_back(p):
    p.copy_((p + rotation(*p.shape)) / 2)


def noise(p):
    p.add_(torch.randn_like(p), alpha=0.3)


def foreign_weights(p):
    p.copy_(torch.randn_like(p))


def one_column(p):
    p[:, 3] *= 3


CHANGES = [average_back, noise, foreign_weights, one_column]


def take(optimizer, steps):
    for _ in range(steps):
        optimizer.step()


def wait_as_a_gpu_would(monkeypatch, delay):
    """Let what is measured arrive some steps later, as from a GPU."""
    asked = []

    def has_arrived(reading):
        asked.append(reading)
        return sum(other is reading for other in asked) > delay

    monkeypatch.setattr(watch._Reading, "has_arrived", has_arrived)
    read_as_from_a_gpu(monkeypatch)


@pytest.mark.parametrize("delay", [0, 20])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_point_far_off_is_named_within_a_hundred_steps_once(kind, change, delay, monkeypatch):
    wait_as_a_gpu_would(monkeypatch, delay)
    p, q = unitary_parameter(6, 6, sweep=0), unitary_parameter(6, 6)
    optimizer = kind([("far", p), ("near", q)], lr=1e-3)
    p.grad, q.grad = gradients(p, 2)
    take(optimizer, 10)
    with torch.no_grad():
        change(p)
    match = r"Parameter `far` .* off its manifold.*project_"
    with pytest.warns(UserWarning, match=match) as record:
        take(optimizer, STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(optimizer, 3 * STEPS)
    assert len(record) == 1
    assert record[0].filename == __file__


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_it_is_named_again_if_it_was_back_in_between(kind):
    p = unitary_parameter(6, 6, sweep=0)
    optimizer = kind([p], lr=1e-3)
    feed(optimizer, p, gradients(p, 1))
    for _ in range(2):
        with torch.no_grad():
            p.mul_(2)
        with pytest.warns(UserWarning, match=r"A parameter of shape \(6, 6\) is off"):
            feed(optimizer, p, gradients(p, STEPS))
        with torch.no_grad():
            p.proj_()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            feed(optimizer, p, gradients(p, STEPS))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_of_any_length_do_not_draw_the_warning(kind):
    p = unitary_parameter(4, 16, 16, k=4, sweep=0)
    optimizer = kind([p], lr=0.3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(optimizer, p, gradients(p, 3 * STEPS))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("change", CHANGES)
def test_points_are_probed_again_after_a_load(change, kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([("w", p)], lr=1e-3)
    feed(optimizer, p, gradients(p, 2))
    saved = copy.deepcopy(optimizer.state_dict())
    with torch.no_grad():
        change(p)
    for again in (optimizer, kind([("w", p)], lr=1e-3)):
        again.load_state_dict(saved)
        before = p.detach().clone()
        with pytest.raises(ValueError, match=r"Parameter `w` .* after a load"):
            feed(again, p, gradients(p, 1))
        assert torch.equal(p, before)
    with torch.no_grad():
        p.proj_()
    feed(again, p, gradients(p, 1))


def test_a_parameter_without_a_gradient_is_probed_when_it_has_one():
    p, late = unitary_parameter(6, 6), on_manifold(2 * torch.eye(6))
    optimizer = ProjUNNRiemannianAdam([p, late])
    feed(optimizer, p, gradients(p, 3))
    late.grad = torch.randn(6, 6)
    with pytest.raises(ValueError, match="must satisfy xᴴx = I"):
        optimizer.step()


@pytest.mark.parametrize("delay", [0, 20])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_first_skipped_step_is_named_within_a_hundred_steps_once(kind, delay, monkeypatch):
    wait_as_a_gpu_would(monkeypatch, delay)
    rnn = OrthogonalRNN(3, 8)
    optimizer = kind(rnn.named_parameters(), lr=1e-3)
    bad = torch.full((8, 8), torch.nan)
    feed(optimizer, rnn.weight_hh_l0, gradients(rnn.weight_hh_l0, 3))
    with pytest.warns(UserWarning, match=r"A step of parameter `weight_hh_l0` .*") as record:
        feed(optimizer, rnn.weight_hh_l0, [bad, *gradients(rnn.weight_hh_l0, STEPS - 1), bad, bad])
    assert len(record) == 1
    assert optimizer.skipped_steps == 3


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_on_a_cpu_the_first_skipped_step_is_named_at_once(kind):
    p = unitary_parameter(2, 6, 6)
    optimizer = kind([p], lr=1e-3)
    feed(optimizer, p, gradients(p, 3))
    (bad,) = gradients(p, 1)
    bad[1, 0, 0] = torch.inf
    with pytest.warns(UserWarning, match=r"A step of a parameter of shape \(2, 6, 6\) was skipped"):
        feed(optimizer, p, [bad])


@pytest.mark.filterwarnings("ignore:A step of a parameter")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_skips_of_a_checkpoint_are_no_news(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=1e-3)
    feed(optimizer, p, [torch.full((6, 6), torch.nan)])
    other = kind([p], lr=1e-3)
    other.load_state_dict(optimizer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(other, p, gradients(p, STEPS))
    assert other.skipped_steps == 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_skips_are_listed_by_name_or_by_number(kind):
    p, q = unitary_parameter(2, 4, 4), unitary_parameter(4, 4)
    plain = torch.nn.Parameter(torch.ones(3))
    grads = torch.randn(2, 4, 4), torch.randn(4, 4), torch.ones(3)
    grads[0][1, 0, 0] = torch.nan
    named = kind([("p", p), ("plain", plain), ("q", q)])
    numbered = kind([{"params": [p]}, {"params": [plain, q]}])
    assert named.skipped_steps_by_parameter() == {"p": 0, "plain": 0, "q": 0}
    for optimizer in (named, numbered):
        p.grad, q.grad, plain.grad = (grad.clone() for grad in grads)
        with pytest.warns(UserWarning, match="skipped"):
            optimizer.step()
    assert named.skipped_steps_by_parameter() == {"p": 1, "plain": 0, "q": 0}
    assert numbered.skipped_steps_by_parameter() == {0: 1, 1: 0, 2: 0}


@pytest.mark.parametrize("phase", [0, 1])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_whose_gradients_come_in_turn_are_watched_too(kind, phase, monkeypatch):
    wait_as_a_gpu_would(monkeypatch, 3)
    p, q = unitary_parameter(6, 6, sweep=0), unitary_parameter(6, 6)
    optimizer = kind([("p", p), ("q", q)], lr=1e-3)
    take_in_turn(optimizer, p, q, phase, 4)
    with torch.no_grad():
        p.mul_(3)
    with pytest.warns(UserWarning, match=r"Parameter `p` of shape .* is off its manifold"):
        take_in_turn(optimizer, p, q, phase, STEPS)


@pytest.mark.parametrize("phase", [0, 1])
def test_skips_of_parameters_whose_gradients_come_in_turn_are_told(phase, monkeypatch):
    wait_as_a_gpu_would(monkeypatch, 3)
    p, q = unitary_parameter(6, 6), unitary_parameter(6, 6)
    optimizer = ProjUNNRiemannianAdam([("p", p), ("q", q)], lr=1e-3)
    take_in_turn(optimizer, p, q, phase, 4)
    with pytest.warns(UserWarning, match=r"A step of parameter `p` of shape .* was skipped"):
        take_in_turn(optimizer, p, q, phase, STEPS, bad=torch.full((6, 6), torch.nan))


def take_in_turn(optimizer, p, q, phase, steps, bad=None):
    for step in range(steps):
        p.grad = q.grad = None
        if step % 2 == phase:
            p.grad = torch.randn_like(p) if bad is None else bad
        else:
            q.grad = torch.randn_like(q)
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_of_one_name_are_listed_by_number(kind):
    modules = [OrthogonalRNN(3, 4), OrthogonalRNN(3, 4)]
    optimizer = kind([{"params": module.named_parameters()} for module in modules])
    assert list(optimizer.skipped_steps_by_parameter()) == list(range(10))


@torch.no_grad()
def test_points_that_are_measured_together_have_the_errors_they_have_alone(monkeypatch):
    """Of each the largest of its batch and blocks; one call for all that are alike."""
    calls = []
    alone = state.relative_error
    monkeypatch.setattr(state, "relative_error", lambda x: calls.append(x.shape) or alone(x))
    params = [unitary_parameter(6, 6) for _ in range(3)]
    params += [unitary_parameter(4, 6, 6), unitary_parameter(4, 6, 6), unitary_parameter(8, 8)]
    params += [on_manifold(torch.cat([rotation(6, 6)] * 2), 1, blocks=2) for _ in range(2)]
    params += [unitary_parameter(6, 6, dtype=torch.complex128) for _ in range(2)]
    for scale, p in enumerate(params):
        p[..., :1, :].mul_(1 + scale)
    params[1].fill_(torch.nan)
    found = state.worst_errors(params)
    assert sorted(map(tuple, calls)) == sorted(
        [(3, 6, 6), (2, 4, 6, 6), (8, 8), (2, 2, 6, 6), (2, 6, 6)]
    )
    expected = {p: alone(p.manifold.points(p)).max() for p in params}
    assert found.keys() == expected.keys()
    for p, error in found.items():
        torch.testing.assert_close(error, expected[p], equal_nan=True)
