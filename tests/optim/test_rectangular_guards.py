"""Rectangular parameters and blocks that must not be stepped are skipped, named or refused."""

import copy

import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD

from ._helpers import OPTIMIZERS, assert_same_bits, feed, gradients
from ._rectangles import OPTIONS, parameter, rules, run

pytestmark = pytest.mark.usefixtures("each_way")


@rules
@pytest.mark.filterwarnings("ignore:A step of")
@pytest.mark.parametrize("shape", [(3, 9, 4), (3, 4, 9)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_matrix_whose_step_is_not_finite_stays_bit_for_bit(bad, shape, rule):
    p = parameter(*shape)
    grads = gradients(p, 3)
    optimizer = run(rule, [p], [grads[:2]])
    before = p.detach().clone()
    state = copy.deepcopy(optimizer.state[p])
    grads[2][1, 2, 3] = bad
    feed(optimizer, p, grads[2:])
    assert_same_bits(p[1], before[1])
    assert not torch.equal(p[0], before[0])
    for name, value in optimizer.state[p].items():
        if name != "skipped":
            assert_same_bits(value[1], state[name][1])
    assert optimizer.state[p]["skipped"].tolist() == [0, 1, 0]


@pytest.mark.filterwarnings("ignore:A step of")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_block_whose_step_is_not_finite_stays_bit_for_bit(kind):
    p = parameter(12, 5, blocks=2)
    optimizer = kind([("w", p)], lr=0.1)
    feed(optimizer, p, gradients(p, 2))
    before = p.detach().clone()
    (grad,) = gradients(p, 1)
    grad[0, 0] = torch.nan
    feed(optimizer, p, [grad])
    assert_same_bits(p[:6], before[:6])
    assert not torch.equal(p[6:], before[6:])
    assert optimizer.skipped_steps_by_parameter() == {"w": 1}


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    ("shape", "blocks", "words"),
    [
        ((8, 3), 1, r"must satisfy xᴴx = I before .*‖xᴴx - I‖ / ‖I‖ is about [23]\."),
        ((3, 8), 1, r"must satisfy xxᴴ = I before .*‖xxᴴ - I‖ / ‖I‖ is about [23]\."),
        ((8, 3), 2, r"must satisfy xᴴx = I in each of its 2 blocks before .*about [23]\."),
    ],
)
def test_a_first_step_from_off_the_manifold_is_refused(shape, blocks, words, kind):
    p = parameter(*shape, k=1, blocks=blocks)
    with torch.no_grad():
        p.mul_(2)
    optimizer = kind([("w", p)], lr=0.1)
    with pytest.raises(ValueError, match=f"Parameter `w` of shape .*{words}"):
        feed(optimizer, p, gradients(p, 1))
    with torch.no_grad():
        p.proj_()
    feed(optimizer, p, gradients(p, 1))


@pytest.mark.parametrize("shape", [(9, 4), (4, 9)])
def test_a_point_that_was_changed_is_named(shape):
    p = parameter(*shape)
    optimizer = ProjUNNRiemannianSGD([("w", p)], lr=1e-3)
    feed(optimizer, p, gradients(p, 2))
    with torch.no_grad():
        p.mul_(1.5)
    gram = "xᴴx" if shape == (9, 4) else "xxᴴ"
    with pytest.warns(UserWarning, match=f"Parameter `w` .*is off its manifold: ‖{gram} - I‖"):
        feed(optimizer, p, gradients(p, 50))


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (12, 4)])
def test_a_plain_parameter_that_looks_like_a_point_is_named(shape):
    x = LowRankStiefel(1).random(*shape)
    if shape == (12, 4):  # three squares
        x = LowRankUnitary(1, blocks=3).random(*shape)
    p, other = torch.nn.Parameter(x.as_subclass(torch.Tensor)), parameter(6, 6)
    optimizer = ProjUNNRiemannianSGD([("w", p), ("other", other)], lr=0.1)
    p.grad, other.grad = torch.randn_like(p), torch.randn_like(other)
    with pytest.warns(UserWarning, match="Parameter `w` .*is orthogonal to rounding, but a plain"):
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_that_lost_its_manifold_is_refused(kind):
    p = parameter(9, 4)
    optimizer = kind([p], lr=0.1)
    feed(optimizer, p, gradients(p, 1))
    p.__class__ = torch.nn.Parameter
    del p.manifold
    with pytest.raises(RuntimeError, match="was on LowRankUnitary or LowRankStiefel and no longer"):
        feed(optimizer, p, gradients(p, 1))


@rules
@pytest.mark.parametrize(("blocks", "others"), [(1, 3), (3, 1), (3, 2)])
def test_a_state_of_another_number_of_blocks_is_refused_before_anything_moves(blocks, others, rule):
    saved = parameter(12, 4, k=1, blocks=blocks)
    state = run(rule, [saved], [gradients(saved, 1)]).state_dict()
    state["param_groups"][0]["params"] = [0, 1]
    state["state"] = {1: state["state"][0]}
    plain, p = torch.nn.Parameter(torch.ones(2)), parameter(12, 4, k=1, blocks=others)
    kind, options = OPTIONS[rule]
    optimizer = kind([plain, p], **options)
    optimizer.load_state_dict(state)
    before = p.detach().clone()
    plain.grad, p.grad = torch.ones(2), torch.ones_like(p)
    with pytest.raises(ValueError, match=r"in the state of a .* must have shape .*blocks"):
        optimizer.step()
    assert_same_bits(p, before)
    assert_same_bits(plain, torch.ones(2))


@pytest.mark.parametrize("rule", ["nesterov", "feedback", "scalar"])
def test_values_of_another_size_are_refused_before_anything_moves(rule):
    """Also where another parameter has that size all along."""
    alike, grown = parameter(8, 6, k=1), parameter(5, 4, k=1)
    plain = torch.nn.Parameter(torch.ones(2))
    steps = [[torch.zeros(2)], gradients(alike, 1), gradients(grown, 1)]
    optimizer = run(rule, [plain, alike, grown], steps)
    grown.grad = None
    grown.data = alike.detach().clone()
    plain.grad = torch.ones(2)
    for p in (alike, grown):
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in (plain, alike, grown)]
    with pytest.raises(
        ValueError, match=r"in the state of .* must have shape \(8, 6\), got \(5, 4\)"
    ):
        optimizer.step()
    for p, x in zip((plain, alike, grown), before, strict=True):
        assert_same_bits(p, x)


def test_blocks_that_change_under_an_optimizer_are_refused_before_anything_moves():
    p, plain = parameter(12, 4, k=1, blocks=3), torch.nn.Parameter(torch.ones(2))
    optimizer = run("sgd", [plain, p], [[torch.zeros(2)], gradients(p, 1)])
    p.manifold = LowRankStiefel(1, blocks=2)
    before = p.detach().clone()
    plain.grad, p.grad = torch.ones(2), torch.ones_like(p)
    with pytest.raises(ValueError, match=r"`skipped` in the state .* must have shape \(2,\), got"):
        optimizer.step()
    assert_same_bits(p, before)
    assert_same_bits(plain, torch.ones(2))
