"""Steps in CUDA graphs are those outside of them, bit for bit."""

import geoopt
import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

from ._helpers import (
    assert_same_bits,
    assert_same_state,
    on_manifold,
    orthogonality_error,
    rotation,
    same_bits,
)

pytestmark = pytest.mark.gpu


class Training:
    """Forward pass, backward pass and step of one matrix, on data that stay where they are."""

    def __init__(self, kind, options, start, data, **manifold):
        self.p = on_manifold(start.cuda(), 2, **manifold)
        self.optimizer = kind([self.p], lr=0.01, **options)
        self.data = data.cuda()

    def step(self):
        self.optimizer.zero_grad()
        turned = self.p @ self.data
        (turned - turned.roll(1, -1)).abs().square().sum().backward()
        self.optimizer.step()

    def steps(self, count):
        for _ in range(count):
            self.step()


@pytest.mark.parametrize(
    ("kind", "options", "retraction", "dtype"),
    [
        (ProjUNNRiemannianSGD, {}, "exponential", torch.float32),
        (ProjUNNRiemannianSGD, {"momentum": 0.9, "nesterov": True}, "polar", torch.complex64),
        (
            ProjUNNRiemannianSGD,
            {"momentum": 0.5, "error_feedback": 0.9},
            "exponential",
            torch.float32,
        ),
        (ProjUNNRiemannianAdam, {"second_moment": "elementwise"}, "cayley", torch.float32),
        (
            ProjUNNRiemannianAdam,
            {"second_moment": "scalar", "amsgrad": True},
            "exponential",
            torch.complex64,
        ),
    ],
)
def test_a_graph_replays_training_steps_bit_for_bit(kind, options, retraction, dtype):
    start, data = rotation(48, 48, dtype=dtype), torch.randn(48, 8, dtype=dtype)
    eager, captured = (
        Training(kind, options, start, data, retraction=retraction) for _ in range(2)
    )
    # On a stream of its own, as torch's notes on graphs ask for.
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        eager.steps(8)
        captured.steps(3)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()  # recorded, not run
    for _ in range(5):
        graph.replay()
    assert_same_bits(captured.p, eager.p)
    assert_same_state(
        captured.optimizer.state[captured.p],
        eager.optimizer.state[eager.p],
    )
    assert eager.optimizer.state[eager.p]["step"].item() == 8
    assert not same_bits(captured.p.cpu(), start)
    assert orthogonality_error(captured.p.cpu()) < 1e-5


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (ProjUNNRiemannianAdam, {"capturable": True, "second_moment": "elementwise"}),
        (ProjUNNRiemannianAdam, {"capturable": True, "second_moment": "scalar"}),
        (ProjUNNRiemannianSGD, {"momentum": 0.9, "fused": True}),
    ],
)
def test_a_graph_replays_mixed_models_and_follows_a_learning_rate_on_the_gpu(kind, options):
    class Mixed(Training):
        def __init__(self):
            super().__init__(kind, {}, start, data)
            self.bias = torch.nn.Parameter(torch.zeros(48, 1, device="cuda"))
            self.lr = torch.tensor(0.01, device="cuda")
            self.optimizer = kind([self.p, self.bias], lr=self.lr, **options)

        def step(self):
            self.optimizer.zero_grad()
            turned = self.p @ self.data + self.bias
            (turned - turned.roll(1, -1) + turned.square()).square().sum().backward()
            self.optimizer.step()

    start, data = rotation(48, 48), torch.randn(48, 8)
    eager, captured = Mixed(), Mixed()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        eager.steps(3)
        captured.steps(3)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.step()
    for lr in (0.01, 0.02, 0.005):
        for model in (eager, captured):
            model.lr.fill_(lr)
        eager.step()
        graph.replay()
    assert_same_bits(captured.p, eager.p)
    assert_same_bits(captured.bias, eager.bias)
    assert eager.bias.any()


def test_a_manifold_of_geoopt_is_refused_while_a_graph_is_captured():
    sphere = geoopt.Sphere()
    params = [
        on_manifold(rotation(32, 32).cuda(), 2),
        geoopt.ManifoldParameter(sphere.random(3, 4).cuda(), manifold=sphere),
    ]
    optimizer = ProjUNNRiemannianSGD(params, lr=0.01)
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer.step()
    before = [p.detach().clone() for p in params]
    count = torch.zeros((), device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        count.add_(1)
        with pytest.raises(RuntimeError, match="cannot be stepped in a CUDA graph"):
            optimizer.step()
    graph.replay()
    for p, value in zip(params, before, strict=True):
        assert_same_bits(p.detach(), value)
