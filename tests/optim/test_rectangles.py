"""Steps of rectangular parameters and of blocks, by both optimizers."""

import copy

import geoopt
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import (
    LowRankStiefel,
    LowRankUnitary,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
    backends,
)
from tests._modes import Recorder

from ._helpers import (
    OPTIMIZERS,
    RETRACTIONS,
    assert_same_bits,
    assert_within,
    eps,
    feed,
    gradients,
    orthogonality_error,
)

pytestmark = pytest.mark.usefixtures("each_way")

OPTIONS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 0.1}),
    "nesterov": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "feedback": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.5, "error_feedback": 0.9}),
    "adam": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "elementwise"}),
    "scalar": (ProjUNNRiemannianAdam, {"lr": 0.1, "second_moment": "scalar", "amsgrad": True}),
}
rules = pytest.mark.parametrize("rule", OPTIONS)
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])


def parameter(*shape, k=2, dtype=torch.float64, **options):
    manifold = LowRankStiefel(k, **options)
    return on(manifold.random(*shape, dtype=dtype), manifold)


def on(x, manifold):
    plain = x.detach().as_subclass(torch.Tensor).clone(memory_format=torch.contiguous_format)
    return geoopt.ManifoldParameter(plain, manifold=manifold)


def run(rule, params, grads):
    """Step some parameters along a list of gradients for each."""
    kind, options = OPTIONS[rule]
    optimizer = kind(params, **options)
    for of_step in zip(*grads, strict=True):
        for p, grad in zip(params, of_step, strict=True):
            p.grad = grad.clone()
        optimizer.step()
    return optimizer


# -- what a step is ------------------------------------------------------------------------


def polar(x):
    u, _, vh = torch.linalg.svd(x, full_matrices=False)
    return u @ vh


def rotated(retraction, omega):
    eye = torch.eye(len(omega), dtype=omega.dtype)
    if retraction == "cayley":
        return torch.linalg.solve(eye - omega / 2, eye + omega / 2)
    return torch.linalg.matrix_exp(omega) if retraction == "exponential" else polar(eye + omega)


@dtypes
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "nesterov": True}, {"maximize": True}])
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_at_full_rank_the_trajectory_is_the_textbook_one(retraction, options, dtype):
    p = parameter(9, 4, k=None, dtype=dtype, retraction=retraction)
    grads = gradients(p, 6)
    x, buffer = p.detach().clone(), torch.zeros_like(p.detach())
    feed(ProjUNNRiemannianSGD([p], lr=0.05, **options), p, grads)
    for grad in grads:
        d = -grad if options.get("maximize") else grad
        if "momentum" in options:
            buffer = 0.9 * buffer + d
            d = d + 0.9 * buffer
        x = rotated(retraction, -0.05 * (d @ x.mH - x @ d.mH)) @ x
    assert_within(p, x, 1e-12)


@dtypes
@rules
def test_a_wide_parameter_moves_as_its_transpose(rule, dtype):
    wide = parameter(2, 5, 12, dtype=dtype)
    tall = on(wide.detach().mT, wide.manifold)
    grads = gradients(wide, 4)
    run(rule, [wide], [grads])
    run(rule, [tall], [[grad.mT.contiguous() for grad in grads]])
    assert_within(wide, tall.detach().mT, 1e-10)


@dtypes
@rules
@pytest.mark.parametrize("shape", [(5, 5), (6, 4), (4, 6)])
def test_blocks_move_as_parameters_of_their_own(shape, rule, dtype):
    n, _ = shape
    kind = LowRankUnitary if shape == (5, 5) else LowRankStiefel
    one = kind(2)
    apart = [on(one.random(*shape, dtype=dtype), one) for _ in range(3)]
    stack = on(torch.cat([p.detach() for p in apart]), kind(2, blocks=3))
    grads = gradients(stack, 4)
    run(rule, apart, [[grad[i * n : (i + 1) * n] for grad in grads] for i in range(3)])
    optimizer = run(rule, [stack], [grads])
    for block, p in zip(stack.detach().chunk(3), apart, strict=True):
        assert_within(block, p, 1e-10)
    assert optimizer.state[stack]["step"].tolist() == [4, 4, 4]


@dtypes
def test_a_square_parameter_moves_as_on_low_rank_unitary_at_half_the_rate(dtype):
    manifold = LowRankUnitary(2)
    square = on(manifold.random(8, 8, dtype=dtype), manifold)
    other = on(square, LowRankStiefel(2))
    grads = gradients(square, 5)
    feed(ProjUNNRiemannianSGD([square], lr=0.1, momentum=0.5), square, grads)
    feed(ProjUNNRiemannianSGD([other], lr=0.05, momentum=0.5), other, grads)
    assert_within(other, square, 1e-12)


@dtypes
@rules
@pytest.mark.parametrize("sketch", ["tangent", "lsi", "column"])
def test_steps_stay_on_the_manifold_and_descend(sketch, rule, dtype):
    p = parameter(16, 4, dtype=dtype, sketch=sketch, retraction="polar")
    target = p.manifold.random(16, 4, dtype=dtype).detach()
    kind, options = OPTIONS[rule]
    optimizer = kind([p], **options)
    first = last = None
    for _ in range(60):
        optimizer.zero_grad()
        loss = (p - target).abs().square().sum()
        loss.backward()
        optimizer.step()
        last = loss.item()
        first = last if first is None else first
    assert last < 0.5 * first
    assert orthogonality_error(p) < 1e-13
    assert optimizer.skipped_steps == 0


@pytest.mark.parametrize("kind", [geoopt.optim.RiemannianSGD, geoopt.optim.RiemannianAdam])
@pytest.mark.parametrize("shape", [(12, 4), (4, 12)])
def test_geoopts_optimizers_train_on_it(shape, kind):
    p = parameter(*shape)
    target = p.manifold.random(*shape, dtype=torch.float64).detach()
    momentum = {"momentum": 0.5} if kind is geoopt.optim.RiemannianSGD else {}
    optimizer = kind([p], lr=0.1, **momentum)
    losses = []
    for _ in range(100):
        optimizer.zero_grad()
        loss = (p - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    assert p.manifold.check_point_on_manifold(p.detach(), atol=1e-10)


# -- rounding ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype"), [((48, 12), torch.float32), ((12, 48), torch.complex64)]
)
def test_many_steps_stay_on_the_manifold(shape, dtype):
    errors = {}
    for sweep in (1, 0):
        p = parameter(*shape, dtype=dtype, sweep=sweep)
        feed(ProjUNNRiemannianSGD([p], lr=0.02), p, 60 * gradients(p, 10))
        errors[sweep] = orthogonality_error(p if shape == (48, 12) else p.mT)
    assert errors[1] < 20 * eps(dtype)
    assert errors[0] > 2 * errors[1]


# -- cost ----------------------------------------------------------------------------------


@rules
@pytest.mark.parametrize(("n", "p"), [(4096, 256), (256, 4096), (65536, 16)])
def test_a_step_costs_knp_flops_whatever_the_shape(n, p, rule):
    manifold = LowRankStiefel(4)
    data, grad = (torch.empty(n, p, device="meta") for _ in range(2))
    weight = geoopt.ManifoldParameter(data, manifold=manifold)
    kind, options = OPTIONS[rule]
    optimizer = kind([weight], **options)
    for _ in range(2):
        weight.grad = grad
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
    products = counter.get_total_flops()
    # Beside n p k there is n k², of bases.
    assert products < 40 * 4 * n * p + 200 * 16 * (n + p)


@pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
@pytest.mark.parametrize("rule", sorted(set(OPTIONS) - {"feedback"}))
@pytest.mark.parametrize(
    ("shape", "blocks"), [((9, 4), 1), ((3, 4, 9), 1), ((12, 6), 2), ((8, 9), 2)]
)
def test_the_kernels_take_such_steps_whole(shape, blocks, rule):
    p = parameter(*shape, blocks=blocks)
    optimizer = run(rule, [p], [gradients(p, 1)])
    (p.grad,) = gradients(p, 1)
    with backends.use("cpu"), Recorder() as recorder:
        optimizer.step()
    assert "step_" in recorder.operations
    assert not {"bmm", "baddbmm", "turn_"} & recorder.operations


# -- guards --------------------------------------------------------------------------------


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
@pytest.mark.parametrize(("shape", "blocks"), [((4, 9), 1), ((12, 4), 3)])
def test_a_run_resumes_bit_for_bit(shape, blocks, rule):
    p = parameter(*shape, k=1, blocks=blocks)
    grads = gradients(p, 6)
    optimizer = run(rule, [p], [grads[:3]])
    saved, values = copy.deepcopy(optimizer.state_dict()), p.detach().clone()
    feed(optimizer, p, grads[3:])
    q = on(values, p.manifold)
    kind, options = OPTIONS[rule]
    other = kind([q], **options)
    other.load_state_dict(saved)
    feed(other, q, grads[3:])
    assert_same_bits(q, p)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_stabilizing_projects_blocks(kind):
    p = parameter(12, 4, k=1, blocks=3, sweep=0)
    optimizer = kind([p], lr=0.1, stabilize=2)
    feed(optimizer, p, gradients(p, 1))
    with torch.no_grad():
        p.add_(1e-4)
    feed(optimizer, p, gradients(p, 1))
    for block in p.detach().chunk(3):
        assert orthogonality_error(block) < 1e-14


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
