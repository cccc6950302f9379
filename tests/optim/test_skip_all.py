"""skip_nonfinite="all": one gradient that is not finite leaves every parameter as it was."""

import copy

import geoopt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.nn import OrthogonalRNN

from ._helpers import (
    OPTIMIZERS,
    assert_same_bits,
    assert_same_state,
    read_as_from_a_gpu,
    unitary_parameter,
    without_counters,
)
from ._skipping import company, feed, gradients, spoilt

SETTINGS = {
    "sgd": (ProjUNNRiemannianSGD, {"lr": 0.05}),
    "momentum": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    "nesterov": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "feedback": (ProjUNNRiemannianSGD, {"lr": 0.05, "momentum": 0.5, "error_feedback": 0.9}),
    "adam": (
        ProjUNNRiemannianAdam,
        {"lr": 0.01, "weight_decay": 0.1, "second_moment": "elementwise"},
    ),
    "adamw": (
        ProjUNNRiemannianAdam,
        {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True, "amsgrad": True},
    ),
    "scalar": (ProjUNNRiemannianAdam, {"lr": 0.01, "second_moment": "scalar"}),
}


each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS.values(), ids=SETTINGS.keys())


BAD = [torch.nan, torch.inf, -torch.inf]


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
@pytest.mark.parametrize("culprit", range(6))
@each_setting
def test_a_run_with_bad_gradients_is_the_run_without_them(kind, options, culprit):
    params = company()
    apart = [copy.deepcopy(p) for p in params]
    optimizer = kind(params, skip_nonfinite="all", **options)
    expected = kind(apart, **options)
    for step in range(6):
        if step in (0, 2, 3):
            feed(optimizer, params, spoilt(params, 10 + step, culprit, BAD[step % 3]))
        feed(optimizer, params, gradients(params, step))
        feed(expected, apart, gradients(apart, step))
    for p, q in zip(params, apart, strict=True):
        assert_same_bits(p, q)
        state = without_counters(optimizer.state[p])
        other = without_counters(expected.state[q])
        if isinstance(state.get("step"), torch.Tensor) and isinstance(other["step"], int):
            state["step"] = int(state["step"])  # of geoopt, as a device can leave it alone
        assert_same_state(state, other)
        assert p.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_groups_that_do_not_ask_for_it_are_stepped(kind):
    params = company()
    careful = [*params[:1], *params[4:5]]
    careless = [*params[1:4], params[5]]
    optimizer = kind([{"params": careful, "skip_nonfinite": "all"}, {"params": careless}], lr=0.1)
    feed(optimizer, params, gradients(params, 0))
    before = [p.detach().clone() for p in params]
    feed(optimizer, params, spoilt(params, 1, 5, torch.nan))
    for p, value in zip(params, before, strict=True):
        assert torch.equal(p, value) == any(p is q for q in [*careful, params[6]])


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
def test_a_bad_sparse_gradient_counts_too():
    weight = torch.nn.Parameter(torch.ones(4, 3))
    p = unitary_parameter(4, 4)
    optimizer = ProjUNNRiemannianSGD([p, weight], lr=0.1, skip_nonfinite="all")
    dense = torch.zeros(4, 3)
    dense[2, 1] = torch.nan
    weight.grad = dense.to_sparse()
    p.grad = torch.randn(4, 4)
    before = p.detach().clone()
    optimizer.step()
    assert_same_bits(p, before)
    assert_same_bits(weight, torch.ones(4, 3))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_one_nan_in_the_input_of_a_recurrent_layer_leaves_it_whole(kind):
    rnn = OrthogonalRNN(3, 8)
    optimizer = kind(rnn.named_parameters(), lr=0.1, skip_nonfinite="all")
    x = torch.randn(5, 2, 3)
    rnn(x)[0].square().sum().backward()
    optimizer.step()
    before = [p.detach().clone() for p in rnn.parameters()]
    optimizer.zero_grad()
    x[2, 1, 0] = torch.nan
    rnn(x)[0].square().sum().backward()
    with pytest.warns(UserWarning, match="The gradient of parameter `weight_ih_l0` of shape"):
        optimizer.step()
    for p, value in zip(rnn.parameters(), before, strict=True):
        assert_same_bits(p, value)
    assert optimizer.skipped_steps == 1
    assert optimizer.skipped_steps_by_parameter()["weight_hh_l0"] == 1


class _Reads(TorchDispatchMode):
    """Count the values that the host reads of tensors."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (
            torch.ops.aten._local_scalar_dense.default,
            torch.ops.aten.is_nonzero.default,
            torch.ops.aten.nonzero.default,
        )
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}])
def test_nothing_is_read_back_where_reading_would_wait(options, monkeypatch):
    read_as_from_a_gpu(monkeypatch)
    params = company()
    optimizer = ProjUNNRiemannianSGD(params, lr=0.1, skip_nonfinite="all", **options)
    feed(optimizer, params, gradients(params, 0))
    with _Reads() as reads:
        feed(optimizer, params, gradients(params, 1))
        feed(optimizer, params, spoilt(params, 2, 4, torch.nan))
    assert reads.count == 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("value", [None, True, "none", "manifolds"])
def test_another_value_is_refused(value, kind):
    with pytest.raises(ValueError, match="`skip_nonfinite` must be one of 'manifold', 'all', got"):
        kind([unitary_parameter(4, 4)], skip_nonfinite=value)


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
def test_sparse_momentum_does_not_stand_in_the_way():
    embedding = torch.nn.Embedding(5, 3, sparse=True)
    p = unitary_parameter(4, 4)
    optimizer = ProjUNNRiemannianSGD(
        [p, *embedding.parameters()], lr=0.1, momentum=0.9, skip_nonfinite="all"
    )
    for step in range(4):
        optimizer.zero_grad()
        (embedding(torch.tensor([step % 2, 3])).sum() + (p * torch.randn(4, 4)).sum()).backward()
        before = p.detach().clone()
        if step == 2:
            p.grad[0, 0] = torch.nan
        optimizer.step()
        assert torch.equal(p, before) == (step == 2)


@pytest.mark.filterwarnings("ignore:The gradient of a parameter")
@pytest.mark.usefixtures("each_device")
def test_a_momentum_buffer_that_is_none_is_begun_as_in_torch():
    plain = torch.nn.Parameter(torch.ones(3))
    optimizer = ProjUNNRiemannianSGD([plain], lr=0.1, momentum=0.9, skip_nonfinite="all")
    optimizer.state[plain]["momentum_buffer"] = None
    for bad in (True, False):
        plain.grad = torch.tensor([torch.nan if bad else 1.0, 1, 1])
        optimizer.step()
    assert_same_bits(plain, torch.full((3,), 0.9))


def test_parameters_without_values_are_stepped():
    p = geoopt.ManifoldParameter(torch.empty(4, 4, device="meta"))
    p.manifold = unitary_parameter(4, 4).manifold
    optimizer = ProjUNNRiemannianAdam([p], skip_nonfinite="all")
    for _ in range(2):
        p.grad = torch.empty(4, 4, device="meta")
        optimizer.step()
    assert optimizer.state[p]["step"].is_meta
