"""Options that are refused, and with which words."""

import numpy as np
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import OPTIMIZERS, Snapshot, assert_same_bits, bystander, unitary_parameter
from ._refusals import company

SHARED = [
    ({"lr": -0.1}, r"`lr` must lie in \[0.0, inf\), got -0.1"),
    ({"lr": float("nan")}, r"`lr` must lie in \[0.0, inf\), got nan"),
    ({"lr": float("inf")}, r"`lr` must lie in \[0.0, inf\), got inf"),
    ({"weight_decay": -1e-3}, r"`weight_decay` must lie in \[0.0, inf\), got -0.001"),
    ({"stabilize": 0}, "`stabilize` must be at least 1, got 0; use stabilize=None"),
    ({"stabilize": -2}, "`stabilize` must be at least 1, got -2"),
]

OF_SGD = [
    ({"momentum": -0.5}, r"`momentum` must lie in \[0.0, inf\), got -0.5"),
    ({"nesterov": True}, "`nesterov` needs momentum > 0 and dampening = 0, got momentum=0"),
    (
        {"nesterov": True, "momentum": 0.9, "dampening": 0.1},
        "`nesterov` needs .* got momentum=0.9, dampening=0.1",
    ),
    ({"error_feedback": 1.0}, r"`error_feedback` must lie in \[0.0, 1.0\), got 1.0"),
    ({"error_feedback": -0.1}, r"`error_feedback` must lie in \[0.0, 1.0\), got -0.1"),
    (
        {"error_feedback": 0.9, "momentum": 0.9, "nesterov": True},
        "`error_feedback` needs .* got nesterov=True, dampening=0.0; leave `error_feedback` at N",
    ),
    (
        {"error_feedback": 0.9, "momentum": 0.9, "dampening": 0.5},
        "`error_feedback` needs .* got nesterov=False, dampening=0.5",
    ),
]

OF_ADAM = [
    ({"betas": (-0.1, 0.9)}, r"`betas\[0\]` must lie in \[0.0, 1.0\), got -0.1"),
    ({"betas": (1.0, 0.9)}, r"`betas\[0\]` must lie in \[0.0, 1.0\), got 1.0"),
    ({"betas": (0.9, 1.0)}, r"`betas\[1\]` must lie in \[0.0, 1.0\), got 1.0"),
    ({"betas": (0.9, float("nan"))}, r"`betas\[1\]` must lie in \[0.0, 1.0\), got nan"),
    ({"betas": (0.9,)}, "`betas`"),
    ({"betas": (0.9, 0.99, 0.999)}, "`betas`"),
    ({"eps": -1e-8}, r"`eps` must lie in \[0.0, inf\), got -1e-08"),
    (
        {"second_moment": "rowwise"},
        "`second_moment` must be one of 'elementwise', 'scalar', 'mean', got 'rowwise'",
    ),
]

FLAGS = {"maximize": "", "compile": "", "foreach": "None, ", "fused": "None, "}
OWN_FLAGS = {
    ProjUNNRiemannianSGD: ("nesterov",),
    ProjUNNRiemannianAdam: ("amsgrad", "decoupled_weight_decay", "capturable"),
}
BAD_FLAGS = [
    (kind, {name: value}, f"`{name}` must be {more}True or False, got {value!r}")
    for kind, own in OWN_FLAGS.items()
    for name, more in {**FLAGS, **dict.fromkeys(own, "")}.items()
    for value in ("False", 1, np.True_)
]

BAD = [
    (kind, options, match)
    for kind, own in ((ProjUNNRiemannianSGD, OF_SGD), (ProjUNNRiemannianAdam, OF_ADAM))
    for options, match in SHARED + own
]


@pytest.mark.parametrize(("kind", "options", "match"), BAD)
def test_a_bad_hyperparameter_is_refused_at_once(kind, options, match):
    with pytest.raises(ValueError, match=match):
        kind([bystander()], **options)


@pytest.mark.parametrize(("kind", "options", "match"), BAD_FLAGS)
def test_flags_are_not_taken_for_true(kind, options, match):
    optimizer = kind([bystander()])
    with pytest.raises(TypeError, match=match):
        kind([bystander()], **options)
    with pytest.raises(TypeError, match=match):
        optimizer.add_param_group({"params": [bystander()], **options})
    assert len(optimizer.param_groups) == 1
    optimizer.param_groups[0].update(options)
    before = Snapshot(optimizer)
    with pytest.raises(TypeError, match=match):
        optimizer.step()
    before.assert_unchanged()


@pytest.mark.parametrize(("kind", "options", "match"), BAD)
def test_a_bad_hyperparameter_of_one_group_is_refused_at_once(kind, options, match):
    with pytest.raises(ValueError, match=match):
        kind([{"params": [bystander()]}, {"params": [bystander()], **options}])


@pytest.mark.parametrize(("kind", "options", "match"), BAD)
def test_a_group_with_a_bad_hyperparameter_is_not_added(kind, options, match):
    optimizer = kind([bystander()])
    before = Snapshot(optimizer)
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [bystander()], **options})
    assert len(optimizer.param_groups) == 1
    before.assert_unchanged()


@pytest.mark.parametrize(("kind", "options", "match"), BAD)
def test_a_hyperparameter_that_turns_bad_is_refused_by_the_step(kind, options, match):
    params = company()
    optimizer = kind([{"params": params[:1]}, {"params": params[1:]}])
    optimizer.step()
    optimizer.param_groups[1].update(options)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=match):
        optimizer.step()
    for p, value in zip(params, before, strict=True):
        assert_same_bits(p, value)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("value", [True, False, None])
def test_an_option_of_torch_that_is_not_supported_is_no_keyword(value, kind):
    match = "does not support `differentiable`; remove it. Supported are lr"
    with pytest.raises(TypeError, match=match):
        kind([bystander()], differentiable=value)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_option_of_torch_that_is_not_supported_is_refused_in_a_group(kind):
    optimizer = kind([bystander()])
    before = Snapshot(optimizer)
    match = f"{kind.__name__} does not support `differentiable`; remove it"
    with pytest.raises(ValueError, match=match):
        optimizer.add_param_group({"params": [bystander()], "differentiable": True})
    before.assert_unchanged()
    with pytest.raises(ValueError, match=match):
        kind([{"params": [bystander()], "differentiable": True}])


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["momentun", "k", "retraction", "differentiable"])
def test_an_unknown_keyword_is_refused(name, kind):
    with pytest.raises(TypeError, match=f"{kind.__name__} does not support `{name}`"):
        kind([bystander()], **{name: 1})


def test_an_option_of_the_other_optimizer_is_refused():
    with pytest.raises(TypeError, match="does not support `betas`"):
        ProjUNNRiemannianSGD([bystander()], betas=(0.9, 0.99))
    with pytest.raises(TypeError, match="does not support `momentum`"):
        ProjUNNRiemannianAdam([bystander()], momentum=0.9)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_torchs_own_refusals_are_passed_on(kind):
    p = bystander()
    with pytest.raises(ValueError, match="empty parameter list"):
        kind([])
    with pytest.raises(ValueError, match="non-leaf"):
        kind([p * 2])
    optimizer = kind([p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [p]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("value", ["1e-3", None, True, 1j])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_learning_rate_that_is_no_number_is_refused(kind, value):
    with pytest.raises(TypeError, match=r"`lr` must be a number, got .*; pass an int"):
        kind([unitary_parameter(6, 6)], lr=value)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_tensor_of_several_learning_rates_is_refused(kind):
    with pytest.raises(ValueError, match=r"`lr` must be one number, got a tensor of 2"):
        kind([unitary_parameter(6, 6)], lr=torch.tensor([1e-2, 1e-1]))


@pytest.mark.parametrize("betas", [None, 0.9, (0.9,), (0.9, 0.99, 0.999)])
def test_betas_that_are_no_pair_are_refused(betas):
    with pytest.raises(ValueError, match=r"`betas` must be a pair of numbers, got "):
        ProjUNNRiemannianAdam([unitary_parameter(6, 6)], betas=betas)
