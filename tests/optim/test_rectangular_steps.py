"""Steps of rectangular parameters and of blocks, by both optimizers."""

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD

from ._helpers import RETRACTIONS, assert_within, eps, feed, gradients, orthogonality_error
from ._rectangles import OPTIONS, dtypes, on, parameter, rules, run

pytestmark = pytest.mark.usefixtures("each_way")


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
