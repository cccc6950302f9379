"""State that other options, or another optimizer, have left: what goes on and what begins anew."""

import copy
import pickle

import pytest
import torch

from geoopt_projunn import (
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
)

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    feed,
    gradients,
    unitary_parameter,
)


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("momentum_space", "tangent", "ambient"),
        ("momentum_space", "ambient", "tangent"),
        ("error_feedback", 0.5, None),
    ],
)
def test_sgd_that_changes_back_begins_anew_once_more(name, first, second):
    p = unitary_parameter(6, 6)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, momentum=0.9, **{name: first})
    feed(optimizer, p, [1e3 * grad for grad in gradients(p, 3)])
    (group,) = optimizer.param_groups
    group[name] = second
    feed(optimizer, p, gradients(p, 1))
    group[name] = first
    q, grads = copy.deepcopy(p), gradients(p, 3)
    feed(optimizer, p, grads)
    fresh = ProjUNNRiemannianSGD([q], lr=0.1, momentum=0.9, **{name: first})
    feed(fresh, q, grads)
    assert_same_bits(p, q)
    assert optimizer.state[p].keys() == fresh.state[q].keys()


@pytest.mark.parametrize("amsgrad", [False, True])
def test_moments_of_torchs_adam_are_taken_over_into_amsgrad(amsgrad):
    p = unitary_parameter(6, 6)
    plain = torch.nn.Parameter(p.detach().clone())
    theirs = torch.optim.Adam([plain])
    feed(theirs, plain, gradients(plain, 5))
    optimizer = ProjUNNRiemannianAdam([p], second_moment="elementwise", amsgrad=amsgrad)
    optimizer.state[p].update(copy.deepcopy(theirs.state[plain]))
    feed(optimizer, p, gradients(p, 1))
    assert optimizer.state[p]["step"].item() == 6


@pytest.mark.parametrize("name", ["momentum_buffer", "exp_avg"])
def test_real_state_of_a_complex_parameter_is_begun_anew(name):
    """torch leaves the dtypes of the state of complex parameters as they are."""
    kind, options = (
        (ProjUNNRiemannianSGD, {"momentum": 0.9})
        if name == "momentum_buffer"
        else (ProjUNNRiemannianAdam, {"second_moment": "elementwise"})
    )
    p = unitary_parameter(4, 4, dtype=torch.complex64)
    q = copy.deepcopy(p)
    optimizer = kind([p], lr=0.1, **options)
    real = torch.full_like(p.detach().real, 1e3)
    optimizer.state[p].update({name: real, "exp_avg_sq": real.clone(), "step": torch.tensor(3.0)})
    grads = gradients(p, 2)
    feed(optimizer, p, grads)
    feed(kind([q], lr=0.1, **options), q, grads)
    assert_same_bits(p, q)


def test_a_plain_state_without_second_moments_is_begun_anew():
    """As torch.optim.Adamax leaves it."""
    p = torch.nn.Parameter(torch.randn(3))
    theirs = torch.optim.Adamax([p])
    feed(theirs, p, gradients(p, 2))
    bystander = unitary_parameter(4, 4)
    optimizer = ProjUNNRiemannianAdam([p, bystander])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": theirs.state_dict()["state"]})
    q = copy.deepcopy(p)
    grads = gradients(p, 2)
    feed(optimizer, p, grads)
    feed(torch.optim.Adam([q]), q, grads)
    assert_same_bits(p, q)


def test_amsgrad_that_is_switched_on_keeps_the_moments():
    p = unitary_parameter(4, 4)
    optimizer = ProjUNNRiemannianAdam([p])
    feed(optimizer, p, gradients(p, 5))
    moment = optimizer.state[p]["exp_avg"].clone()
    optimizer.param_groups[0]["amsgrad"] = True
    feed(optimizer, p, [torch.zeros_like(p)])
    assert optimizer.state[p]["step"].item() == 6
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], 0.9 * moment)


@pytest.mark.parametrize(
    ("kind", "options", "name", "value"),
    [
        (ProjUNNRiemannianSGD, {}, "momentum", 0.9),
        (ProjUNNRiemannianSGD, {"momentum": 0.9}, "momentum_space", "tangent"),
        (ProjUNNRiemannianAdam, {}, "second_moment", "elementwise"),
    ],
)
def test_a_state_that_begins_anew_keeps_its_count_of_skipped_steps(kind, options, name, value):
    p = unitary_parameter(4, 4)
    optimizer = kind([p], lr=0.1, **options)
    feed(optimizer, p, gradients(p, 2))
    with pytest.warns(UserWarning, match="was skipped"):
        feed(optimizer, p, [torch.full_like(p, torch.nan)])
    optimizer.param_groups[0][name] = value
    feed(optimizer, p, gradients(p, 1))
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("name", ["step", "skipped"])
@pytest.mark.parametrize("shape", [(2,), (1,), ()])
def test_a_loaded_count_of_another_shape_is_refused(which, name, shape):
    params = [unitary_parameter(3, 4, 4), unitary_parameter(3, 4, 4)]
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][which][name] = torch.zeros(shape)
    optimizer.load_state_dict(saved)
    before = [p.detach().clone() for p in params]
    with pytest.raises(ValueError, match=f"`{name}` in the state of"):
        optimizer.step()
    for p, value in zip(params, before, strict=True):
        assert_same_bits(p, value)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_state_begun_where_points_lie_by_columns_is_contiguous(kind):
    p = unitary_parameter(4, 6, 6)
    p.data = p.data.mT.contiguous().mT
    options = {"momentum": 0.9} if kind is ProjUNNRiemannianSGD else {}
    optimizer = kind([p], lr=0.1, **options)
    feed(optimizer, p, gradients(p, 1))
    name = "momentum_buffer" if kind is ProjUNNRiemannianSGD else "exp_avg"
    assert optimizer.state[p][name].is_contiguous()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_file_of_an_older_version_is_read(kind):
    optimizer = kind([unitary_parameter(4, 4)], lr=0.1)
    state = optimizer.__getstate__()
    del state["_stabilize"]
    other = object.__new__(kind)
    other.__setstate__(pickle.loads(pickle.dumps(state)))
    other.add_param_group({"params": [torch.nn.Parameter(torch.zeros(3))]})
