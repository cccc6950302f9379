"""In evaluation the kernel is made once, and again whenever it would be another one."""

import copy
import pickle

import pytest
import torch

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD, nn
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_within
from tests.nn._jacobian import jacobian


def build(**options):
    return nn.BlockOrthogonalConv2d(3, 8, 3, **options)


def made(layer, monkeypatch):
    """Return a list that gets longer with every kernel that the layer makes."""
    count, make = [], layer.kernel
    monkeypatch.setattr(layer, "kernel", lambda: count.append(1) or make())
    return count


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_in_evaluation_the_kernel_is_made_once(monkeypatch, context):
    layer = build()
    expected = layer(X).detach()
    layer.eval()
    count = made(layer, monkeypatch)
    with context():
        for _ in range(3):
            assert_bit_equal(layer(X).clone(), expected)
            assert_same_to_rounding(layer.adjoint(layer(X)).norm(), X.norm())
    assert len(count) == 1


def test_in_training_and_for_gradients_it_is_made_each_time(monkeypatch):
    layer = build()
    count = made(layer, monkeypatch)
    for _ in range(2):
        layer(X).sum().backward()
    with torch.no_grad():
        layer(X)
    layer.eval()
    for _ in range(2):
        layer.zero_grad()
        layer(X).pow(3).sum().backward()
        assert layer.projectors.grad.abs().max() > 0
    assert len(count) == 5


def test_an_input_has_gradients_where_the_parameters_have_none(monkeypatch):
    layer = build().eval().requires_grad_(False)
    count = made(layer, monkeypatch)
    with torch.inference_mode():
        layer(X)
    for _ in range(2):
        x = X.clone().requires_grad_()
        layer(x).square().sum().backward()
        assert_within(x.grad, 2 * x, 1e-5)
    assert len(count) == 1


@pytest.mark.parametrize("trained", ["weight", "projectors"])
def test_in_evaluation_each_parameter_alone_has_its_gradient(trained):
    layer = build().eval().requires_grad_(False)
    layer.get_parameter(trained).requires_grad_(True)
    with torch.no_grad():
        layer(X)
    layer(X).pow(4).sum().backward()
    assert layer.get_parameter(trained).grad.abs().max() > 0


def step(layer):
    stepper = ProjUNNRiemannianSGD(layer.parameters(), lr=0.1)
    with torch.enable_grad():
        layer(X).pow(4).sum().backward()
    stepper.step()
    layer.zero_grad()


def write_data(layer):
    layer.projectors.data.copy_(layer.projectors.flip(0))


def replace_data(layer):
    layer.weight.data = layer.weight.flip(0)


def write_as_numpy(layer):
    array = layer.weight.detach().numpy()
    array[:] = array[::-1].copy()


CHANGES = {
    "a step": step,
    "copy_": lambda layer: layer.weight.copy_(layer.weight.flip(0)),
    "data in place": write_data,
    "other data": replace_data,
    "numpy": write_as_numpy,
    "load": lambda layer: layer.load_state_dict(build(bias=False).state_dict()),
    "assign": lambda layer: layer.load_state_dict(build(bias=False).state_dict(), assign=True),
    "reset": lambda layer: layer.reset_parameters(),
    "train and back": lambda layer: [layer.train(), step(layer), layer.eval()],
    "another parameter": lambda layer: setattr(
        layer, "weight", torch.nn.Parameter(layer.weight.flip(0))
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@torch.no_grad()
def test_no_change_goes_unseen(change):
    layer = build(bias=False).eval()
    before = layer(X)
    CHANGES[change](layer)
    after = layer(X)
    assert (after - before).norm() > 0.01
    assert_same_to_rounding(after, layer.to_conv()(X))
    assert_bit_equal(layer(X), after)


@torch.no_grad()
def test_a_conversion_makes_another_kernel():
    layer = build().eval()
    layer(X)
    layer.double()
    assert layer(X.double()).dtype == torch.float64
    assert_same_to_rounding(layer(X.double()), layer.to_conv()(X.double()))


@torch.no_grad()
def test_parameters_that_are_there_for_one_call_do_not_stay():
    layer, other = build(bias=False).eval(), build(bias=False)
    before = layer(X)
    once = torch.func.functional_call(layer, dict(other.named_parameters()), (X,))
    assert_same_to_rounding(once, other(X))
    assert_bit_equal(layer(X), before)
    stacked = {
        name: torch.stack([p.detach(), dict(other.named_parameters())[name].detach()])
        for name, p in layer.named_parameters()
    }
    both = torch.func.vmap(lambda p: torch.func.functional_call(layer, p, (X,)))(stacked)
    assert_same_to_rounding(both, torch.stack([before, once]))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent_and_no_larger(copied):
    layer = build().eval()
    size = len(pickle.dumps(layer))
    with torch.no_grad():
        before = layer(X)
        assert len(pickle.dumps(layer)) == size
        assert sorted(layer.state_dict()) == ["bias", "projectors", "weight"]
        other = copied(layer)
        step(other)
        assert (other(X) - before).norm() > 0.01
        assert_bit_equal(layer(X), before)


MANIFOLDS = LowRankUnitary(2, retraction="polar"), LowRankStiefel(2, retraction="polar")
CONVERSIONS = {
    "deep copy": copy.deepcopy,
    "pickle": lambda layer: pickle.loads(pickle.dumps(layer)),
    "double": lambda layer: layer.double(),
    "to": lambda layer: layer.to(torch.float64),
    "channels last": lambda layer: layer.to(memory_format=torch.channels_last),
    "shared": lambda layer: layer.share_memory(),
    "no memory": lambda layer: layer.to("meta").to_empty(device="cpu"),
    "assign": lambda layer: [
        layer.load_state_dict(build(k=2).state_dict(), assign=True),
        layer,
    ][1],
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_layer_stays_on_its_manifolds_and_trains_there(conversion, swap):
    layer = CONVERSIONS[conversion](build(k=2, retraction="polar"))
    if conversion == "no memory":
        layer.reset_parameters()
    assert (layer.weight.manifold, layer.projectors.manifold) == MANIFOLDS
    before = jacobian(layer, (4, 4))
    stepper = ProjUNNRiemannianSGD(layer.parameters(), lr=0.1)
    for _ in range(3):
        stepper.zero_grad()
        layer(X.to(layer.weight.dtype)).pow(4).mean().backward()
        stepper.step()
    assert (jacobian(layer, (4, 4)) - before).norm() > 0.1
    assert_within(torch.linalg.svdvals(jacobian(layer, (4, 4))), 1.0, 1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@torch.no_grad()
def test_a_traced_layer_makes_its_kernel_and_takes_what_the_stride_divides():
    layer = nn.BlockOrthogonalConv2d(3, 8, 3, 2).eval()
    layer(X)
    program = torch.jit.trace(layer, (X,))
    x = torch.randn(1, 3, 6, 8)
    before = layer(x)
    assert_same_to_rounding(program(x), before)
    layer.weight.neg_()  # the memory is shared
    assert_same_to_rounding(layer(x), -before)
    assert_same_to_rounding(program(x), -before)
    with pytest.raises(RuntimeError, match="don't multiply up to the size"):
        program(torch.randn(1, 3, 6, 7))
