"""What steps in radians warn of and refuse."""

import warnings

import geoopt
import pytest
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD

from ._helpers import (
    OPTIMIZERS,
    Snapshot,
    assert_same_bits,
    feed,
    gradients,
    unitary_parameter,
)
from ._radians import each_optimizer

pytestmark = pytest.mark.usefixtures("each_way")


@pytest.mark.parametrize(
    ("normalize", "lr", "k", "dtype"),
    [
        ("angle", 1.0, 16, torch.float32),
        ("angle", torch.tensor(1.0), 16, torch.float32),
        # One eigenvalue of a complex generator may have all of it.
        ("angle", 0.6, 16, torch.complex64),
        ("spectral", 3.2, 2, torch.float32),
    ],
)
def test_one_warning_says_that_planes_may_stop(normalize, lr, k, dtype):
    p = unitary_parameter(40, 40, k=k, dtype=dtype)
    optimizer = ProjUNNRiemannianSGD([("weight", p)], lr=lr, normalize=normalize)
    with pytest.warns(UserWarning, match=r"`weight`.*half a turn.*above π.*Lower it") as caught:
        feed(optimizer, p, gradients(p, 3))
    assert len(caught) == 1


def test_a_warning_that_is_an_error_leaves_all_parameters_as_they_were():
    p, plain = unitary_parameter(6, 6), torch.nn.Parameter(torch.ones(2))
    groups = [{"params": [plain]}, {"params": [p], "lr": 5.0, "normalize": "angle"}]
    optimizer = ProjUNNRiemannianSGD(groups, lr=0.1)
    plain.grad, p.grad = torch.ones(2), torch.randn_like(p)
    before = p.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="half a turn"):
            optimizer.step()
    assert_same_bits(p, before)
    assert_same_bits(plain, torch.ones(2))


@pytest.mark.parametrize(("normalize", "lr", "k"), [("angle", 0.78, 16), ("spectral", 3.1, 16)])
def test_shorter_steps_draw_no_warning(normalize, lr, k):
    p = unitary_parameter(40, 40, k=k)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        feed(ProjUNNRiemannianSGD([p], lr=lr, normalize=normalize), p, gradients(p, 2))


@each_optimizer
@pytest.mark.parametrize("value", ["Angle", True, 1, "frobenius"])
def test_other_names_are_refused(kind, value):
    p = unitary_parameter(4, 4)
    with pytest.raises(
        ValueError, match=r"`normalize` must be one of None, 'angle', 'spectral', got"
    ):
        kind([p], normalize=value)
    optimizer = kind([p])
    optimizer.param_groups[0]["normalize"] = value
    p.grad = torch.randn_like(p)
    before = Snapshot(optimizer)
    with pytest.raises(
        ValueError, match=r"`normalize` must be one of None, 'angle', 'spectral', got"
    ):
        optimizer.step()
    before.assert_unchanged()


def test_error_feedback_is_refused():
    with pytest.raises(ValueError, match=r"`error_feedback` needs normalize = None.*got .*'angle'"):
        ProjUNNRiemannianSGD([unitary_parameter(4, 4)], error_feedback=0.9, normalize="angle")


@each_optimizer
def test_a_checkpoint_of_an_older_version_steps_as_it_did(kind):
    p = unitary_parameter(6, 6)
    optimizer = kind([p], lr=0.1)
    feed(optimizer, p, gradients(p, 1))
    state = optimizer.state_dict()
    del state["param_groups"][0]["normalize"]
    other = kind([p], lr=0.1, normalize="angle")
    other.load_state_dict(state)
    assert other.param_groups[0]["normalize"] == "angle"
    own = kind([p], lr=0.1)
    own.load_state_dict(state)
    assert own.param_groups[0]["normalize"] is None


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    "manifold",
    [
        geoopt.Scaled(LowRankUnitary(k=1), 2.0),
        geoopt.ProductManifold((LowRankUnitary(k=1), (6, 6)), (geoopt.Sphere(), (6,))),
        geoopt.Scaled(geoopt.Scaled(LowRankUnitary(k=1), 2.0)),
        geoopt.ProductManifold(
            (geoopt.Scaled(LowRankUnitary(k=1)), (6, 6)), (geoopt.Sphere(), (6,))
        ),
    ],
    ids=["scaled", "product", "scaled twice", "product with scaled"],
)
def test_what_geoopt_steps_is_not_given_radians_without_a_word(kind, manifold):
    shape = (6, 6) if isinstance(manifold, geoopt.Scaled) else (42,)
    start = manifold.random(*shape).as_subclass(torch.Tensor)
    p = geoopt.ManifoldParameter(start, manifold=manifold)
    plain = torch.nn.Parameter(torch.ones(3))
    p.grad, plain.grad = torch.randn(p.shape), torch.ones(3)
    before = p.detach().clone()
    optimizer = kind([plain, p], lr=0.1, normalize="angle")
    with pytest.raises(ValueError, match=r"`normalize` must be None .* geoopt steps .*'angle'"):
        optimizer.step()
    assert torch.equal(p, before)
    assert torch.equal(plain, torch.ones(3))
    optimizer.param_groups[0]["normalize"] = None
    optimizer.step()
    assert not torch.equal(p, before)
