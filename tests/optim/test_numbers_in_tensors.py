"""Options may be numbers in tensors."""

import copy

import geoopt
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    OPTIMIZERS,
    Snapshot,
    assert_same_bits,
    assert_within,
    feed,
    gradients,
    on_manifold,
    step_alike,
    unitary_parameter,
)


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("value", [torch.tensor(0.125), torch.tensor([0.125])])
def test_a_learning_rate_may_be_a_tensor(value, kind):
    p = unitary_parameter(6, 6)
    q = on_manifold(p.detach())
    grads = gradients(p, 4)
    feed(kind([p], lr=value), p, grads)
    feed(kind([q], lr=0.125), q, grads)
    assert_same_bits(p, q)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("k", [1, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_learning_rate_may_be_any_tensor_of_one_number(kind, shape, k, dtype):
    sphere = geoopt.Sphere()
    params = [
        unitary_parameter(6, 6, k=k),
        unitary_parameter(2, 4, 4, k=k, sketch="column"),
        torch.nn.Parameter(torch.randn(3)),
        geoopt.ManifoldParameter(sphere.random(2, 3), manifold=sphere),
    ]
    others = [copy.deepcopy(p) for p in params]
    rate = torch.full(shape, 0.125, dtype=dtype)
    step_alike(zip(params, others, strict=True), [kind(params, lr=rate), kind(others, lr=0.125)], 1)
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-6)
    assert rate.shape == shape


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_learning_rate_without_a_value_is_refused_at_once(kind):
    params = [unitary_parameter(6, 6), torch.nn.Parameter(torch.randn(3))]
    optimizer = kind(params, lr=0.1)
    optimizer.param_groups[0]["lr"] = torch.empty((), device="meta")
    for p in params:
        p.grad = torch.randn_like(p)
    values = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match="`lr` must have a value, but is on the meta device"):
        optimizer.step()
    for p, value in zip(params, values, strict=True):
        assert_same_bits(p, value)
    assert not optimizer.state


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool])
def test_a_learning_rate_of_another_kind_of_number_is_refused(dtype, kind):
    with pytest.raises(TypeError, match="`lr` must be a real number, got a tensor of torch"):
        kind([unitary_parameter(4, 4)], lr=torch.ones((), dtype=dtype))


@pytest.mark.parametrize(
    ("kind", "name", "value", "words"),
    [
        *(
            (kind, "lr", torch.tensor(-0.125), r"`lr` must lie in .* got -0.125")
            for kind in OPTIMIZERS
        ),
        (ProjUNNRiemannianSGD, "weight_decay", torch.tensor([-1.0]), "`weight_decay` must lie in"),
        (
            ProjUNNRiemannianAdam,
            "betas",
            (torch.tensor(0.5), torch.tensor(1.0)),
            r"`betas\[1\]` must lie in \[0.0, 1.0\), got 1.0",
        ),
    ],
)
def test_a_number_out_of_range_is_refused_in_a_tensor_too(kind, name, value, words):
    with pytest.raises(ValueError, match=words):
        kind([unitary_parameter(4, 4)], **{name: value})
    optimizer = kind([unitary_parameter(4, 4), torch.nn.Parameter(torch.ones(3))])
    for p in optimizer.param_groups[0]["params"]:
        p.grad = torch.ones_like(p)
    optimizer.param_groups[0][name] = value
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=words):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.usefixtures("each_way")
@pytest.mark.parametrize("second_moment", ["elementwise", "scalar"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_betas_may_be_two_tensors(shape, second_moment):
    params = [unitary_parameter(6, 6), unitary_parameter(4, 4, dtype=torch.complex64)]
    others = [copy.deepcopy(p) for p in params]
    betas = torch.full(shape, 0.5), torch.full(shape, 0.75)
    options = {"lr": 0.01, "second_moment": second_moment}
    optimizers = [
        ProjUNNRiemannianAdam(params, betas=betas, **options),
        ProjUNNRiemannianAdam(others, betas=(0.5, 0.75), **options),
    ]
    step_alike(zip(params, others, strict=True), optimizers, 3)
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_a_number_and_a_tensor_are_no_betas(first):
    betas = (torch.tensor(0.5), 0.9) if first else (0.5, torch.tensor(0.9))
    with pytest.raises(ValueError, match="betas must be either both floats or both Tensors"):
        ProjUNNRiemannianAdam([unitary_parameter(4, 4)], betas=betas)


def test_the_paper_s_betas_may_be_written_as_an_integer():
    p = unitary_parameter(4, 4)
    q = on_manifold(p.detach())
    optimizers = [
        ProjUNNRiemannianAdam([p], betas=(0, 0.9)),
        ProjUNNRiemannianAdam([q], betas=(0.0, 0.9)),
    ]
    step_alike([(p, q)], optimizers)
    assert_same_bits(p, q)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (ProjUNNRiemannianAdam, "eps"),
        (ProjUNNRiemannianAdam, "weight_decay"),
        (ProjUNNRiemannianSGD, "weight_decay"),
        (ProjUNNRiemannianSGD, "dampening"),
    ],
)
def test_other_options_may_be_a_tensor_of_any_shape_of_one_number(kind, name):
    sphere = geoopt.Sphere()
    params = [torch.nn.Parameter(torch.randn(3)), unitary_parameter(4, 4)]
    params.append(geoopt.ManifoldParameter(sphere.random(2, 3), manifold=sphere))
    others = [copy.deepcopy(p) for p in params]
    more = {"momentum": 0.9} if kind is ProjUNNRiemannianSGD else {}
    optimizers = [
        kind(params, lr=0.1, **more, **{name: torch.full((1, 1), 0.25)}),
        kind(others, lr=0.1, **more, **{name: 0.25}),
    ]
    step_alike(list(zip(params, others, strict=True)), optimizers)
    for p, q in zip(params, others, strict=True):
        assert_within(p, q, 1e-6)
