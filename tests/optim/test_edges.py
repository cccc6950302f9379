"""Options and parameters at the edge of what is allowed."""

import copy

import geoopt
import pytest
import torch

from geoopt_projunn import (
    LowRankStiefel,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
)

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_within,
    feed,
    gradients,
    orthogonality_error,
    read_as_from_a_gpu,
    unitary_parameter,
)


def test_without_a_rank_a_long_step_draws_no_warning():
    """The gradient is spread over many planes, none of which turns half a turn."""
    p = unitary_parameter(16, 16, k=None)
    feed(ProjUNNRiemannianSGD([p], lr=1.5, normalize="angle"), p, gradients(p, 1))
    assert orthogonality_error(p) < 1e-5


def test_a_lazily_conjugated_gradient_is_checked():
    p = unitary_parameter(4, 4, dtype=torch.complex64)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, skip_nonfinite="all")
    p.grad = torch.randn_like(p).conj()
    optimizer.step()
    assert optimizer.skipped_steps == 0


def test_stabilize_changes_nothing_if_one_cannot_be_projected():
    p, q = unitary_parameter(3, 4, 4), unitary_parameter(3, 4, 4)
    optimizer = ProjUNNRiemannianSGD([p, q], lr=0.1)
    with torch.no_grad():
        p.mul_(2)
    before = p.detach().clone()
    q.data = q.detach()[:1].expand(3, 4, 4)
    with pytest.raises(ValueError, match="must have memory of its own"):
        optimizer.stabilize()
    assert_same_bits(p, before)


def test_empty_points_are_projected():
    p = unitary_parameter(0, 4, 4)
    ProjUNNRiemannianSGD([p], lr=0.1).stabilize()
    assert p.shape == (0, 4, 4)


def test_a_negative_dampening_is_taken_as_by_torch():
    p = unitary_parameter(4, 4)
    plain, grads = torch.nn.Parameter(p.detach().clone()), gradients(p, 3)
    ours, theirs = (
        kind([q], lr=0.1, momentum=0.9, dampening=-0.5)
        for kind, q in ((ProjUNNRiemannianSGD, p), (torch.optim.SGD, plain))
    )
    feed(ours, p, grads)
    feed(theirs, plain, grads)
    buffers = (o.state[q]["momentum_buffer"] for o, q in ((ours, p), (theirs, plain)))
    assert_within(*buffers, 1e-6)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 1), torch.float32), ((1, 1, 1), torch.float32), ((), torch.float64)],
)
@pytest.mark.parametrize("of", [torch.float32, torch.float64, torch.complex64])
def test_betas_may_be_tensors_of_any_shape_and_precision(shape, dtype, of):
    p = unitary_parameter(3, 4, 4, dtype=of)
    q = copy.deepcopy(p)
    grads = gradients(p, 3)
    betas = torch.full(shape, 0.5, dtype=dtype), torch.full(shape, 0.75, dtype=dtype)
    feed(ProjUNNRiemannianAdam([p], betas=betas), p, grads)
    feed(ProjUNNRiemannianAdam([q], betas=(0.5, 0.75)), q, grads)
    assert_within(p, q, 1e-6)


def test_an_empty_batch_takes_its_first_step():
    p = unitary_parameter(0, 4, 4)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, stabilize=1)
    feed(optimizer, p, [torch.zeros_like(p)])
    assert optimizer.skipped_steps == 0


def test_an_empty_gradient_is_finite():
    p, q = torch.nn.Parameter(torch.zeros(0, 3)), unitary_parameter(4, 4)
    optimizer = ProjUNNRiemannianSGD([p, q], lr=0.1, skip_nonfinite="all")
    p.grad = torch.zeros_like(p)
    before = q.detach().clone()
    feed(optimizer, q, gradients(q, 1))
    assert not torch.equal(q, before)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_that_raises_is_undone(kind, monkeypatch):
    """Where reading would wait, what the others had moved before torch's error is put back."""
    read_as_from_a_gpu(monkeypatch)
    first, second = torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(3))
    p = unitary_parameter(4, 4)
    options = {"momentum": 0.9} if kind is ProjUNNRiemannianSGD else {}
    groups = [{"params": [first]}, {"params": [second, p]}]
    optimizer = kind(groups, lr=0.1, skip_nonfinite="all", foreach=False, **options)
    for _ in range(2):
        for q in (first, second, p):
            q.grad = torch.randn_like(q)
        optimizer.step()
    value = first.detach().clone()
    name = "momentum_buffer" if kind is ProjUNNRiemannianSGD else "exp_avg"
    optimizer.state[second][name] = torch.zeros(5)
    with pytest.raises(RuntimeError):
        optimizer.step()
    assert_same_bits(first, value)


def test_meta_parameters_do_not_hinder_all():
    p, q = unitary_parameter(4, 4), torch.nn.Parameter(torch.zeros(3, device="meta"))
    optimizer = ProjUNNRiemannianSGD([p, q], lr=0.1, skip_nonfinite="all")
    q.grad = torch.zeros_like(q)
    before = p.detach().clone()
    feed(optimizer, p, gradients(p, 1))
    assert not torch.equal(p, before)


def test_only_groups_that_skip_put_off_their_projection():
    p, q = unitary_parameter(4, 4, sweep=0), unitary_parameter(4, 4, sweep=0)
    optimizer = ProjUNNRiemannianSGD(
        [{"params": [p], "skip_nonfinite": "all"}, {"params": [q]}], lr=1e-3, stabilize=2
    )
    p.grad, q.grad = torch.randn_like(p), torch.randn_like(q)
    optimizer.step()
    with torch.no_grad():
        for one in (p, q):
            one.mul_(1 + 1e-3)
    before = p.detach().clone()
    p.grad.fill_(torch.nan)
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    assert_same_bits(p, before)
    assert orthogonality_error(q) < 1e-5


@pytest.mark.parametrize("shape", [(8, 3), (3, 8), (5, 5)])
def test_a_mean_of_squares_counts_all_entries_of_a_rectangle(shape):
    """By "mean" a rate is that of "scalar" times the root of their number."""
    manifold = LowRankStiefel(k=1)
    p = geoopt.ManifoldParameter(manifold.random(*shape, dtype=torch.float64), manifold=manifold)
    q = copy.deepcopy(p)
    rate, root = 1e-3, (shape[0] * shape[1]) ** 0.5
    grads = gradients(p, 3)
    feed(ProjUNNRiemannianAdam([p], lr=rate, eps=0.0, second_moment="mean"), p, grads)
    feed(ProjUNNRiemannianAdam([q], lr=rate * root, eps=0.0, second_moment="scalar"), q, grads)
    assert_within(p, q, 1e-12)


def test_weight_decay_apart_from_the_moments_is_a_retraction_in_any_metric():
    manifold = geoopt.Lorentz()
    start = manifold.random_normal(4, 3).detach().as_subclass(torch.Tensor)
    p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    options = {"lr": 0.05, "weight_decay": 0.3, "decoupled_weight_decay": True}
    optimizer = ProjUNNRiemannianAdam([p, unitary_parameter(4, 4)], **options)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    v = manifold.egrad2rgrad(start, start.clone())
    assert_within(p, manifold.retr(start, -0.05 * 0.3 * v), 1e-5)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("sketch", ["tangent", "lsi", "column", "coordinates"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "momentum_space": "tangent"}])
def test_a_sweep_of_all_columns_mends_a_point(sketch, options):
    p = unitary_parameter(6, 6, dtype=torch.float64, sketch=sketch, sweep=20)
    with torch.no_grad():
        p.add_(1e-5 * torch.randn_like(p))
    before = orthogonality_error(p)
    feed(ProjUNNRiemannianSGD([p], lr=1e-3, **options), p, gradients(p, 1))
    assert orthogonality_error(p) < 1e-3 * before


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": 0.9},
        {"error_feedback": 0.5},
        {"momentum": 0.9, "momentum_space": "tangent"},
    ],
)
@pytest.mark.parametrize("n", [6, 300])
def test_autograd_sees_that_point_and_state_have_changed(options, n):
    p = unitary_parameter(n, n, sweep=0)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, **options)
    feed(optimizer, p, gradients(p, 1))
    state = [t for name, t in optimizer.state[p].items() if name.endswith("buffer")]
    before = [t._version for t in (p, *state)]
    feed(optimizer, p, gradients(p, 1))
    assert all(t._version > v for t, v in zip((p, *state), before, strict=True))
