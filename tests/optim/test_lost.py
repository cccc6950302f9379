"""Plain parameters that look as if they had lost their manifold."""

import gc
import warnings
import weakref

import geoopt
import pytest
import torch
from torch import distributed

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.nn import OrthogonalRNN
from geoopt_projunn.optim import lost as looking

from ._helpers import OPTIMIZERS, Snapshot, rotation, unitary_parameter

LOST = r"Parameter `w` of shape .* is orthogonal to rounding, but a plain parameter"


def with_gradient(p):
    p.grad = torch.randn_like(p)
    return p


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
@pytest.mark.parametrize("shape", [(6, 6), (3, 4, 4)])
@pytest.mark.parametrize("company", [True, False])
def test_a_plain_orthogonal_parameter_is_named_once(company, shape, dtype, kind):
    lost = with_gradient(torch.nn.Parameter(rotation(*shape, dtype=dtype)))
    others = [("other", with_gradient(unitary_parameter(4, 4)))] if company else []
    optimizer = kind([*others, ("w", lost)], lr=0.1)
    with pytest.warns(UserWarning, match=LOST) as record:
        optimizer.step()
    assert len(record) == 1
    assert record[0].filename == __file__
    lost.data.copy_(rotation(*shape, dtype=dtype))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    lost.data.copy_(rotation(*shape, dtype=dtype))
    with pytest.warns(UserWarning, match=LOST):
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_on_the_euclidean_is_named_as_well(kind):
    """geoopt puts a parameter there that was given no manifold."""
    lost = with_gradient(geoopt.ManifoldParameter(rotation(6, 6)))
    with pytest.warns(UserWarning, match=LOST):
        kind([("w", lost)], lr=0.1).step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_that_have_stepped_can_be_swapped(kind):
    """torch swaps DTensors in each conversion, and refuses tensors with weak references."""
    params = [
        with_gradient(torch.nn.Parameter(torch.randn(4, 4))),
        with_gradient(unitary_parameter(4, 4)),
    ]
    optimizer = kind(params, lr=0.1)
    optimizer.step()
    for p in params:
        p.grad = None
        torch.utils.swap_tensors(p, torch.nn.Parameter(torch.zeros(4, 4)))
        assert not p.any()


class Theirs(dict):
    """What another library puts in the place of ``module._parameters``; no manifold is kept."""


def one_of_two_loaded_with_assign():
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    for layer in module:
        layer._parameters = Theirs(layer._parameters)
        layer.weight = geoopt.ManifoldParameter(LowRankUnitary().random(4, 4))
    module[1].load_state_dict(module[1].state_dict(), assign=True)
    return module


def moved_through_the_meta_device():
    module = torch.nn.Linear(4, 4)
    module._parameters = Theirs(module._parameters)
    module.weight = unitary_parameter(4, 4)
    saved = {name: value.clone() for name, value in module.state_dict().items()}
    module.to("meta").to_empty(device="cpu")
    module.load_state_dict(saved)
    return module


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("build", [one_of_two_loaded_with_assign, moved_through_the_meta_device])
def test_a_manifold_that_torch_dropped_is_missed(build, kind):
    module = build()
    optimizer = kind(module.named_parameters(), lr=0.1)
    for p in module.parameters():
        with_gradient(p)
    with pytest.warns(UserWarning, match="weight` of shape .* plain parameter"):
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize(
    "p",
    [
        torch.nn.Parameter(torch.ones(3)),
        torch.nn.Parameter(torch.ones(1, 1)),
        torch.nn.Parameter(torch.randn(6, 6)),
        torch.nn.Parameter(torch.eye(6)[:, :4]),
        torch.nn.Parameter(torch.eye(6), requires_grad=False),
        torch.nn.Parameter(torch.eye(6)),
        torch.nn.Parameter(-torch.eye(6).expand(2, 6, 6).clone()),
        torch.nn.Parameter(rotation(6, 6).bfloat16()),
        torch.nn.Parameter(torch.eye(6, device="meta")),
        torch.nn.Parameter(torch.randn(0, 4, 4)),
        geoopt.ManifoldParameter(torch.eye(4), manifold=geoopt.Scaled(LowRankUnitary(), 2.0)),
        geoopt.ManifoldParameter(torch.eye(4), manifold=geoopt.Stiefel()),
    ],
)
def test_other_parameters_draw_no_warning(p, kind):
    optimizer = kind([p], lr=0.1)
    p.grad = torch.zeros_like(p) if p.requires_grad else None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    p.grad = None


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_without_a_gradient_draws_no_warning(kind):
    optimizer = kind([torch.nn.Parameter(rotation(6, 6)), with_gradient(unitary_parameter(4, 4))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 3])
def test_a_parameter_that_moves_later_is_named_when_it_begins(steps, kind):
    frozen = torch.nn.Parameter(rotation(6, 6))
    head = torch.nn.Parameter(torch.randn(4))
    optimizer = kind([("w", frozen), ("head", head)], lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()  # of nothing
        for _ in range(steps):
            with_gradient(head)
            optimizer.step()
    with_gradient(frozen)
    with pytest.warns(UserWarning, match=LOST):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_parameter_of_a_group_that_comes_later_is_named(kind):
    optimizer = kind([("head", with_gradient(torch.nn.Parameter(torch.randn(4))))], lr=0.1)
    optimizer.step()
    optimizer.add_param_group(
        {"params": [("w", with_gradient(torch.nn.Parameter(rotation(6, 6))))]}
    )
    with pytest.warns(UserWarning, match=LOST):
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parameters_that_take_the_place_of_others_are_looked_at(kind):
    first, second = (with_gradient(torch.nn.Parameter(rotation(6, 6))) for _ in range(2))
    optimizer = kind([first], lr=0.1)
    optimizer.param_groups[0]["params"] = [second]  # as wrappers do
    with pytest.warns(UserWarning, match="plain parameter") as record:
        optimizer.step()
    assert len(record) == 1
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_nobody_waits_while_a_graph_is_captured(kind, monkeypatch):
    optimizer = kind([("w", with_gradient(torch.nn.Parameter(rotation(6, 6))))], lr=0.0)
    with warnings.catch_warnings(), monkeypatch.context() as patched:
        warnings.simplefilter("error")
        patched.setattr(looking, "is_capturing", lambda: True)
        optimizer.step()
    with pytest.warns(UserWarning, match=LOST):
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_optimizer_for_each_parameter_draws_no_warning(kind):
    rnn = OrthogonalRNN(3, 8, num_layers=2)
    rnn(torch.randn(4, 2, 3))[0].sum().backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for p in rnn.parameters():
            kind([p], lr=0.1).step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_warning_made_an_error_leaves_everything_as_it_is(kind):
    p = with_gradient(torch.nn.Parameter(rotation(4, 4)))
    optimizer = kind([p])
    before = Snapshot(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="plain parameter"):
            optimizer.step()
    before.assert_unchanged()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # as it is imported
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_zero_redundancy_steps_and_shows_its_optimizer(kind):
    from torch.distributed.optim import ZeroRedundancyOptimizer

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        rnn = OrthogonalRNN(3, 8)
        wrapper = ZeroRedundancyOptimizer(rnn.parameters(), kind, lr=0.1)
        rnn(torch.randn(4, 2, 3))[0].sum().backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            wrapper.step()
        rnn.weight_hh_l0.grad.fill_(torch.nan)
        with pytest.warns(UserWarning, match="A step of a parameter of shape"):
            wrapper.step()
        assert wrapper.optim.skipped_steps == 1
    finally:
        distributed.destroy_process_group()
