"""How a step is driven: gradients, closures, hooks, and what autograd sees of it."""

import pytest
import torch
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    DTYPES,
    OPTIMIZERS,
    Procrustes,
    Snapshot,
    assert_same_bits,
    assert_within,
    bystander,
    feed,
    gradients,
    on_manifold,
    unitary_parameter,
)
from ._runs import clones, mixed_parameters, run


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zero_grad_clears_every_kind_of_gradient(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    run(optimizer, params, range(1))
    optimizer.zero_grad()
    assert all(p.grad is None for p in params)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    for p, q in zip(params, before, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_closure_runs_with_gradients_and_its_loss_comes_back(dtype, kind):
    problem = Procrustes(6, 6, dtype=dtype)
    p = unitary_parameter(6, 6, dtype=dtype)
    by_hand = on_manifold(p.detach())
    left, right = kind([p], lr=0.05), kind([by_hand], lr=0.05)
    modes = []

    def closure():
        modes.append(torch.is_grad_enabled())
        left.zero_grad()
        loss = problem.loss(p)
        loss.backward()
        return loss

    for _ in range(3):
        with torch.no_grad():
            value = left.step(closure)
        right.zero_grad()
        loss = problem.loss(by_hand)
        loss.backward()
        assert right.step() is None
        assert_same_bits(value, loss)
    assert modes == [True] * 3
    assert_same_bits(p, by_hand)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_closure_that_raises_leaves_everything_as_it_is(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    run(optimizer, params, range(2))
    before = Snapshot(optimizer)

    def closure():
        raise KeyError("no data")

    with pytest.raises(KeyError, match="no data"):
        optimizer.step(closure)
    before.assert_unchanged()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_accumulated_gradients_take_the_step_of_their_sum(dtype, kind):
    together = unitary_parameter(6, 6, dtype=dtype)
    apart = on_manifold(together.detach())
    weights = [torch.randn(6, 6, dtype=dtype) for _ in range(3)]

    def loss(p, weight):
        return (weight.conj() * p).real.sum() + ((weight @ p).abs() ** 4).sum() / 4

    left, right = kind([together], lr=0.01), kind([apart], lr=0.01)
    for _ in range(3):
        left.zero_grad()
        right.zero_grad()
        sum(loss(together, weight) for weight in weights).backward()
        for weight in weights:
            loss(apart, weight).backward()
        left.step()
        right.step()
    assert_within(together, apart, 1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_clip_grad_norm_scales_the_step(dtype):
    clipped = unitary_parameter(6, 6, dtype=dtype)
    by_hand = on_manifold(clipped.detach())
    plain, other = (torch.nn.Parameter(torch.ones(3, dtype=dtype)) for _ in range(2))
    left = ProjUNNRiemannianSGD([clipped, plain], lr=0.1)
    right = ProjUNNRiemannianSGD([by_hand, other], lr=0.1)
    grads = [3 * torch.randn(p.shape, dtype=dtype) for p in (clipped, plain)]
    norm = torch.cat([grad.flatten() for grad in grads]).norm()
    clipped.grad, plain.grad = (grad.clone() for grad in grads)
    by_hand.grad, other.grad = (grad / norm for grad in grads)
    assert_within(torch.nn.utils.clip_grad_norm_([clipped, plain], 1.0), norm, 1e-13)
    left.step()
    right.step()
    # clip_grad_norm_ divides by the norm plus 1e-6.
    assert_within(clipped, by_hand, 1e-6)
    assert_within(plain, other, 1e-6)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_step_hooks_run_once_each_around_the_step(kind):
    params = mixed_parameters()
    optimizer = kind(params, lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(("pre", params[0].detach().clone())))
    optimizer.register_step_post_hook(lambda *_: seen.append(("post", params[0].detach().clone())))
    before = params[0].detach().clone()
    run(optimizer, params, range(1))
    assert [name for name, _ in seen] == ["pre", "post"]
    assert_same_bits(seen[0][1], before)
    assert_same_bits(seen[1][1], params[0])
    assert not torch.equal(before, params[0])


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_global_step_hooks_run_once_each_with_this_optimizer(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda opt, *_: seen.append(("pre", opt))),
        register_optimizer_step_post_hook(lambda opt, *_: seen.append(("post", opt))),
    ]
    try:
        run(optimizer, params, range(1))
    finally:
        for handle in handles:
            handle.remove()
    assert [(name, opt is optimizer) for name, opt in seen] == [("pre", True), ("post", True)]


@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_pre_hook_may_change_the_gradients(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.1)

    def spoil(*_):
        p.grad.fill_(torch.nan)

    optimizer.register_step_pre_hook(spoil)
    feed(optimizer, p, gradients(p, 1))
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_step_builds_no_graph_and_marks_the_parameter_as_changed(kind):
    params = mixed_parameters()
    optimizer = kind(params)
    versions = [p._version for p in params]
    run(optimizer, params, range(1))
    assert all(p._version > version for p, version in zip(params, versions, strict=True))
    for p in params:
        assert p.is_leaf
        assert p.requires_grad
        for value in optimizer.state[p].values():
            assert not (isinstance(value, torch.Tensor) and value.requires_grad)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_autograd_notices_a_step_between_forward_and_backward(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.1)
    loss = (p @ p).sum()
    feed(optimizer, p, gradients(p, 1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_parameter_keeps_its_storage(kind):
    params = [*mixed_parameters(), unitary_parameter(6, 6, k=2)]
    addresses = [p.data_ptr() for p in params]
    optimizer = kind(params, stabilize=1)
    run(optimizer, params, range(3))
    assert [p.data_ptr() for p in params] == addresses


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_steps_of_plain_and_unitary_parameters_are_independent(kind):
    """A mixed optimizer takes the steps that one optimizer for each parameter would."""
    params = mixed_parameters(torch.float64)
    apart = clones(params)
    optimizer = kind(params, lr=0.01)
    held = [bystander() for _ in apart]
    others = [kind([p, more], lr=0.01) for p, more in zip(apart, held, strict=True)]
    run(optimizer, params, range(4))
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for p, other in zip(apart, others, strict=True):
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
            other.step()
    for p, q in zip(params, apart, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize("lr", [0.25, torch.tensor(0.25)], ids=["number", "tensor"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ProjUNNRiemannianSGD, {"normalize": "angle", "fused": True}),
        (ProjUNNRiemannianSGD, {"momentum": 0.5, "error_feedback": 0.5}),
        (ProjUNNRiemannianAdam, {"normalize": "spectral"}),
    ],
)
def test_torchs_default_device_makes_no_difference(kind, options, lr):
    # Of plain ones older Adams of torch count steps on the default device.
    params = [*mixed_parameters()[:2], unitary_parameter(4, 4, k=None)]
    others = clones(params)
    run(kind(params, lr=lr, **options), params, range(2))
    with torch.device("meta"):
        optimizer = kind(others, lr=lr, **options)
    for step in range(2):
        generator = torch.Generator().manual_seed(step)
        for q in others:
            q.grad = torch.randn(q.shape, dtype=q.dtype, generator=generator)
        with torch.device("meta"):
            optimizer.step()
    for p, q in zip(params, others, strict=True):
        assert_same_bits(p, q)


@pytest.mark.parametrize("momentum_space", ["ambient", "tangent"])
def test_steps_in_inference_mode_and_outside_may_alternate(momentum_space):
    p = unitary_parameter(6, 6)
    (q,) = clones([p])
    options = {"lr": 0.1, "momentum": 0.9, "momentum_space": momentum_space}
    left, right = (ProjUNNRiemannianSGD([r], **options, skip_nonfinite="all") for r in (p, q))
    for step in range(4):
        with torch.inference_mode(step % 2 == 0):
            run(left, [p], range(step, step + 1))
        run(right, [q], range(step, step + 1))
    assert_same_bits(p, q)


def test_the_count_of_a_plain_parameter_may_begin_in_inference_mode():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, skip_nonfinite="all")
    for inference in (True, False):
        with torch.inference_mode(inference):
            run(optimizer, [p], range(1))
    p.grad = torch.full((3,), torch.nan)
    with pytest.warns(UserWarning, match="not finite"):
        optimizer.step()
    assert optimizer.skipped_steps == 1
