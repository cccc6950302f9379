"""What a CUDA graph could not replay is refused before anything moves."""

import geoopt
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import assert_same_bits, bystander, read_as_from_a_gpu

SGD, ADAM = ProjUNNRiemannianSGD, ProjUNNRiemannianAdam


@pytest.fixture
def capture(monkeypatch):
    """Let torch say that it captures a graph, from the call on, and that all is on a GPU."""

    def begin():
        read_as_from_a_gpu(monkeypatch)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda t: False))

    return begin


def sphere():
    manifold = geoopt.Sphere()
    return geoopt.ManifoldParameter(manifold.random(3, 4), manifold=manifold)


def plain():
    return torch.nn.Parameter(torch.randn(3))


def give_gradients(params):
    for p in params:
        p.grad = torch.randn_like(p)


def assert_refused(optimizer, params, error, match):
    """Raises, and changes neither parameters nor state."""
    give_gradients(params)
    points = [p.detach().clone() for p in params]
    states = [
        {k: torch.as_tensor(v).clone() for k, v in optimizer.state[p].items()} for p in params
    ]
    with pytest.raises(error, match=match):
        optimizer.step()
    for p, point, state in zip(params, points, states, strict=True):
        assert_same_bits(p.detach(), point)
        assert optimizer.state[p].keys() == state.keys()
        for key, value in state.items():
            assert_same_bits(torch.as_tensor(optimizer.state[p][key]), value)


@pytest.mark.parametrize(
    ("kind", "options", "other", "error", "match"),
    [
        (SGD, {}, sphere, RuntimeError, r"on Sphere manifold cannot be stepped in a CUDA graph"),
        (ADAM, {}, sphere, RuntimeError, "geoopt's optimizers count steps on the host"),
        (ADAM, {}, plain, ValueError, "`capturable` must be True from the first step .* got False"),
        (SGD, {"lr": torch.tensor(0.1)}, plain, ValueError, "`fused` must be True .* got None"),
        (SGD, {"stabilize": 5}, plain, ValueError, "`stabilize` must be None .* got 5"),
    ],
)
def test_what_a_replay_would_do_wrong_is_refused(capture, kind, options, other, error, match):
    params = [bystander(), other()]
    optimizer = kind(params, **{"lr": 0.1, **options})
    give_gradients(params)
    optimizer.step()
    capture()
    assert_refused(optimizer, params, error, match)


def test_a_projection_is_refused_without_a_look_at_the_values(capture):
    params = [bystander()]
    optimizer = SGD(params, lr=0.1, stabilize=2)
    give_gradients(params)
    optimizer.step()
    with torch.no_grad():
        params[0].fill_(torch.nan)
    capture()
    assert_refused(optimizer, params, ValueError, "`stabilize` must be None .* got 2")


@pytest.mark.parametrize("kind", [SGD, ADAM])
@pytest.mark.parametrize("first", [bystander, plain])
def test_first_steps_are_refused(capture, kind, first):
    options = {"momentum": 0.9} if kind is SGD else {}
    params = [bystander(), first()]
    optimizer = kind(params, lr=0.1, **options)
    give_gradients(params[:1])
    optimizer.step()
    capture()
    assert_refused(optimizer, params, RuntimeError, "must have taken a step before one is captured")


def test_a_rule_that_needs_more_state_is_refused(capture):
    params = [bystander()]
    optimizer = SGD(params, lr=0.1)
    give_gradients(params)
    optimizer.step()
    capture()
    optimizer.param_groups[0]["momentum"] = 0.9
    assert_refused(optimizer, params, RuntimeError, "must have taken a step before one is captured")


def test_on_a_cpu_nothing_can_be_captured(capture, monkeypatch):
    params = [bystander()]
    optimizer = SGD(params, lr=0.1)
    give_gradients(params)
    optimizer.step()
    capture()
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda t: True))
    assert_refused(optimizer, params, RuntimeError, "must be on the GPU .* but is on the CPU")


@pytest.mark.parametrize(
    ("kind", "options"),
    [(SGD, {"momentum": 0.9}), (ADAM, {"capturable": True}), (ADAM, {"skip_nonfinite": "all"})],
)
def test_other_steps_are_taken(capture, kind, options):
    """Of orthogonal parameters, plain ones too where torch's own optimizer could be captured."""
    params = [bystander()]
    optimizer = kind(params, lr=0.1, **options)
    give_gradients(params)
    optimizer.step()
    capture()
    optimizer.step()
    assert optimizer.state[params[0]]["step"] == 2
