"""Options of groups: those of torch that are passed on, those of others that are kept."""

import copy
import sys
import warnings

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    OPTIMIZERS,
    Snapshot,
    assert_same_bits,
    assert_same_state,
    assert_within,
    feed,
    gradients,
    on_manifold,
    unitary_parameter,
)
from .test_euclidean import plain_parameters

REFERENCES = {ProjUNNRiemannianSGD: torch.optim.SGD, ProjUNNRiemannianAdam: torch.optim.Adam}
PASSED_ON = [
    {"foreach": True},
    {"foreach": False},
    {"fused": True},
    {"weight_decay": 0.1, "foreach": True},
]


def step_alike(pairs, optimizers, steps=4):
    for _ in range(steps):
        for p, q in pairs:
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("options", PASSED_ON)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_torchs_implementations_are_chosen_as_in_torch(kind, options, monkeypatch):
    seen = []

    def spy(name):
        module = sys.modules[REFERENCES[kind].__module__]
        own = getattr(module, name)

        def wrapped(*args, **kwargs):
            seen.append(name)
            return own(*args, **kwargs)

        monkeypatch.setattr(module, name, wrapped)

    family = "sgd" if kind is ProjUNNRiemannianSGD else "adam"
    for way in ("single_tensor", "multi_tensor", "fused"):
        spy(f"_{way}_{family}")
    ours = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    theirs = [copy.deepcopy(p) for p in ours]
    optimizer = kind([*ours, unitary_parameter(4, 4)], lr=0.1, **options)
    reference = REFERENCES[kind](theirs, lr=0.1, **options)
    pairs = list(zip(ours, theirs, strict=True))
    step_alike(pairs, [optimizer, reference])
    assert len(seen) == 8
    assert len(set(seen)) == 1
    for p, q in pairs:
        assert_same_bits(p, q)


def test_capturable_is_passed_on():
    optimizer = ProjUNNRiemannianAdam([unitary_parameter(4, 4)], capturable=True)
    group = {**optimizer.param_groups[0], "params": [torch.ones(3)]}
    delegate = optimizer._others._plain._over({}, [group])
    assert delegate.param_groups[0]["capturable"] is True


def test_capturable_steps_of_plain_parameters_on_a_cpu_are_refused_at_once():
    p, plain = unitary_parameter(4, 4), torch.nn.Parameter(torch.ones(3))
    optimizer = ProjUNNRiemannianAdam([("p", p), ("plain", plain)], capturable=True)
    feed(optimizer, p, gradients(p, 2))
    p.grad, plain.grad = torch.randn(4, 4), torch.ones(3)
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=r"`capturable` needs .* got parameter `plain`"):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_fused_steps_that_torch_cannot_take_are_refused_at_once(kind):
    p, plain = unitary_parameter(4, 4), torch.nn.Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = kind([p, plain], fused=True)
    p.grad, plain.grad = torch.randn(4, 4), torch.ones(3, dtype=torch.complex64)
    before = Snapshot(optimizer)
    with pytest.raises(RuntimeError, match="`fused=True` requires"):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_what_torch_refuses_is_refused_with_its_words(kind):
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        kind([unitary_parameter(4, 4)], fused=True, foreach=True)
    optimizer = kind([unitary_parameter(4, 4)])
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        optimizer.add_param_group(
            {"params": [unitary_parameter(4, 4)], "fused": True, "foreach": True}
        )
    assert len(optimizer.param_groups) == 1


# -- decoupled weight decay --------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}])
def test_decoupled_weight_decay_of_plain_parameters_is_that_of_adamw(options):
    ours, theirs = plain_parameters(), plain_parameters()
    optimizer = ProjUNNRiemannianAdam(
        [*ours, unitary_parameter(4, 4)],
        lr=0.1,
        weight_decay=0.3,
        decoupled_weight_decay=True,
        **options,
    )
    reference = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.3, **options)
    pairs = list(zip(ours, theirs, strict=True))
    step_alike(pairs, [optimizer, reference])
    for p, q in pairs:
        assert_same_bits(p, q)
        assert_same_state(optimizer.state[p], reference.state[q])


def test_decoupled_weight_decay_has_no_effect_on_unitary_matrices():
    p = unitary_parameter(6, 6)
    q = on_manifold(p.detach())
    decayed = ProjUNNRiemannianAdam([p], lr=0.1, weight_decay=0.3, decoupled_weight_decay=True)
    plain = ProjUNNRiemannianAdam([q], lr=0.1)
    step_alike([(p, q)], [decayed, plain])
    assert_same_bits(p, q)


def test_decoupled_weight_decay_on_the_euclidean_manifold_is_that_of_adamw():
    start = torch.randn(5, 3, dtype=torch.float64)
    p = geoopt.ManifoldParameter(start.clone(), manifold=geoopt.Euclidean(ndim=0))
    q = torch.nn.Parameter(start.clone())
    ours = ProjUNNRiemannianAdam(
        [p, unitary_parameter(4, 4)], lr=0.1, weight_decay=0.3, decoupled_weight_decay=True
    )
    theirs = torch.optim.AdamW([q], lr=0.1, weight_decay=0.3)
    step_alike([(p, q)], [ours, theirs])
    assert_within(p, q, 1e-12)


@pytest.mark.parametrize("manifold", [geoopt.Sphere(), geoopt.PoincareBall(), geoopt.Stiefel()])
def test_decoupled_weight_decay_stays_on_geoopts_manifolds(manifold):
    start = manifold.random(4, 3)
    p = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    undecayed = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
    options = {"lr": 0.05, "decoupled_weight_decay": True}
    ours = ProjUNNRiemannianAdam([p, unitary_parameter(4, 4)], weight_decay=0.3, **options)
    other = ProjUNNRiemannianAdam([undecayed, unitary_parameter(4, 4)], **options)
    step_alike([(p, undecayed)], [ours, other])
    assert manifold.check_point_on_manifold(p, atol=1e-5)
    # Only of the ball does the norm of a point change.
    if isinstance(manifold, geoopt.PoincareBall):
        assert p.norm() < undecayed.norm()
    else:
        assert_within(p, undecayed, 1e-6)


# -- keys of others ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    "key", ["rho", "adaptive", "lr_scale", "lr_mult", "weight_decay_scale", "layer", "swa_lr", "k"]
)
def test_keys_of_wrappers_and_schedules_are_kept(key, kind):
    optimizer = kind([{"params": [unitary_parameter(4, 4)], key: 0.5}])
    optimizer.add_param_group({"params": [unitary_parameter(4, 4)], key: 0.25})
    assert [group[key] for group in optimizer.param_groups] == [0.5, 0.25]
    for group in optimizer.param_groups:
        feed(optimizer, group["params"][0], [torch.randn(4, 4)])
    other = kind([{"params": group["params"]} for group in optimizer.param_groups])
    other.load_state_dict(optimizer.state_dict())
    assert [group[key] for group in other.param_groups] == [0.5, 0.25]


@pytest.mark.parametrize(
    ("kind", "key", "meant"),
    [
        (ProjUNNRiemannianSGD, "momentumm", "momentum"),
        (ProjUNNRiemannianSGD, "nestrov", "nesterov"),
        (ProjUNNRiemannianSGD, "dampning", "dampening"),
        (ProjUNNRiemannianAdam, "weight_decey", "weight_decay"),
        (ProjUNNRiemannianAdam, "ams_grad", "amsgrad"),
        (ProjUNNRiemannianAdam, "beta", "betas"),
        (ProjUNNRiemannianAdam, "stabilise", "stabilize"),
    ],
)
def test_a_key_that_looks_misspelt_is_kept_with_a_warning(kind, key, meant):
    with pytest.warns(UserWarning, match=f"`{key}` of a .*if `{meant}` is meant") as record:
        optimizer = kind([{"params": [unitary_parameter(4, 4)], key: 0.5}])
    assert record[0].filename == __file__
    assert optimizer.param_groups[0][key] == 0.5


def test_sharpness_aware_wrappers_work():
    """Such wrappers put a key of their own into groups and a tensor into the state."""
    p = unitary_parameter(6, 6)
    base = ProjUNNRiemannianSGD([{"params": [p], "rho": 0.05}], lr=0.01, momentum=0.9)
    for _ in range(3):
        (grad,) = gradients(p, 1)
        with torch.no_grad():
            base.state[p]["old_p"] = p.detach().clone()
            p.add_(grad, alpha=base.param_groups[0]["rho"] / grad.norm())
            p.copy_(base.state[p]["old_p"])
        feed(base, p, [grad])
    assert LowRankUnitary().orthogonality_error(p) < 1e-5


# -- numbers in tensors --------------------------------------------------------------------


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


def test_a_star_import_leaves_nn_alone():
    names = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec("from torch import nn\nfrom geoopt_projunn import *", names)
    assert names["nn"] is torch.nn
    assert names["LowRankUnitary"] is LowRankUnitary


# -- options that become unsuitable -------------------------------------------------------

LATER = [
    (ProjUNNRiemannianAdam, {"foreach": True, "lr": torch.tensor(0.1)}, "with `foreach=True`"),
    (
        ProjUNNRiemannianAdam,
        {"foreach": True, "betas": (torch.tensor(0.5), torch.tensor(0.9))},
        "with `foreach=True`",
    ),
    (ProjUNNRiemannianAdam, {"capturable": True}, "`capturable` needs plain parameters on a GPU"),
    (
        ProjUNNRiemannianAdam,
        {"betas": (0.5, torch.empty((), device="meta"))},
        "`betas` must have a value",
    ),
    (ProjUNNRiemannianAdam, {"eps": torch.empty((), device="meta")}, "`eps` must have a value"),
    (ProjUNNRiemannianSGD, {"momentum": torch.empty((), device="meta")}, "`momentum` must have"),
]


@pytest.mark.parametrize(("kind", "changes", "match"), LATER)
def test_an_option_that_becomes_unsuitable_is_refused_before_anything_moves(kind, changes, match):
    params = [torch.nn.Parameter(torch.randn(3)), torch.nn.Parameter(torch.randn(3))]
    params.append(unitary_parameter(4, 4))
    optimizer = kind([{"params": [p]} for p in params])
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    optimizer.param_groups[1].update(changes)
    values = [p.detach().clone() for p in params]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    for p, value in zip(params, values, strict=True):
        assert_same_bits(p, value)
    for key, entries in optimizer.state_dict()["state"].items():
        assert_same_state(entries, state[key])


def test_a_sparse_gradient_of_fused_steps_is_refused_before_anything_moves():
    first, weight = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(4, 3))
    optimizer = ProjUNNRiemannianSGD(
        [{"params": [first, unitary_parameter(4, 4)]}, {"params": [weight], "fused": True}]
    )
    first.grad, weight.grad = torch.ones(3), torch.ones(4, 3).to_sparse()
    before = Snapshot(optimizer)
    with pytest.raises(TypeError, match="must be dense with `fused=True`, got a sparse gradient"):
        optimizer.step()
    before.assert_unchanged()


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


def test_amsgrad_may_be_switched_on_for_every_kind_of_parameter():
    sphere = geoopt.Sphere()
    params = [torch.nn.Parameter(torch.randn(3)), unitary_parameter(4, 4)]
    params.append(geoopt.ManifoldParameter(sphere.random(2, 3), manifold=sphere))
    optimizer = ProjUNNRiemannianAdam(params, lr=0.1, second_moment="elementwise")
    for amsgrad in (False, True, True):
        optimizer.param_groups[0]["amsgrad"] = amsgrad
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    for p in params:
        assert (optimizer.state[p]["max_exp_avg_sq"] >= optimizer.state[p]["exp_avg_sq"]).all()
