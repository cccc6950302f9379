"""Parameters, gradients and comparisons that the optimizer tests share."""

import copy

import geoopt
import torch

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.optim import waiting

OPTIMIZERS = (ProjUNNRiemannianSGD, ProjUNNRiemannianAdam)
RETRACTIONS = ("exponential", "polar", "cayley")
SKETCHES = ("tangent", "lsi", "column")
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def without_counters(state):
    """Return the state that torch and geoopt know of."""
    return {name: v for name, v in state.items() if name not in ("skipped", "skipped_steps")}


def read_as_from_a_gpu(monkeypatch):
    """Let the optimizers take the ways that they take where the host would wait."""
    monkeypatch.setattr(waiting, "reads_at_once", lambda t: False)


def eps(dtype):
    return torch.finfo(dtype).eps


def rotation(*shape, dtype=torch.float32):
    """Draw a Haar matrix; a real one of determinant 1, which steps from I can reach."""
    x = LowRankUnitary(k=None).random(*shape, dtype=dtype).as_subclass(torch.Tensor)
    if not dtype.is_complex:
        x[..., :1] *= torch.linalg.slogdet(x).sign[..., None, None]
    return x.contiguous()


def on_manifold(x, k=1, **options):
    return geoopt.ManifoldParameter(
        x.clone(memory_format=torch.contiguous_format), manifold=LowRankUnitary(k, **options)
    )


def unitary_parameter(*shape, dtype=torch.float32, k=1, **options):
    return on_manifold(rotation(*shape, dtype=dtype), k, **options)


def bystander():
    """Return a parameter on LowRankUnitary, for an optimizer that is about others."""
    return unitary_parameter(4, 4)


def gradients(p, count, scale=1.0):
    return [scale * torch.randn(p.shape, dtype=p.dtype) for _ in range(count)]


def feed(optimizer, p, grads):
    """Step along given gradients."""
    for grad in grads:
        p.grad = grad.clone()
        optimizer.step()


def step_alike(pairs, optimizers, steps=4):
    """Step pairs of parameters along the same random gradients."""
    for _ in range(steps):
        for p, q in pairs:
            q.grad = torch.randn_like(q)
            p.grad = q.grad.clone()
        for optimizer in optimizers:
            optimizer.step()


def orthogonality_error(x):
    wide = x.detach().to(torch.complex128 if x.is_complex() else torch.float64)
    eye = torch.eye(x.shape[-1], dtype=wide.dtype)
    return torch.linalg.matrix_norm(wide.mH @ wide - eye).max().item()


def same_bits(a, b):
    def bits(tensor):
        dense = tensor.detach().clone(memory_format=torch.contiguous_format)
        return dense.reshape(-1).view(torch.uint8)

    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(bits(a), bits(b))


def assert_same_bits(a, b):
    assert same_bits(a, b), f"largest difference {(a - b).abs().max().item():.1e}"


def assert_within(actual, expected, bound):
    difference = actual.detach() - expected.detach().to(actual.dtype)
    worst = torch.linalg.vector_norm(difference, torch.inf).item() if difference.numel() else 0.0
    assert worst <= bound, f"largest difference {worst:.1e} > {bound:.1e}"


def assert_same_state(left, right):
    """Two states of a parameter agree bit for bit."""
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert_same_bits(value, right[name])
        else:
            assert value == right[name], name


def exp_skewh(s):
    """Exponential of a skew-Hermitian matrix; torch's own is off by 1e-11 at norm 0.04."""
    angles, vectors = torch.linalg.eigh(-1j * s)
    result = (vectors * torch.exp(1j * angles).unsqueeze(-2)) @ vectors.mH
    return result if s.is_complex() else result.real


class Snapshot:
    """Everything that a refused step must leave alone."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.values = [p.detach().clone() for p in self.params]
        self.grads = [None if p.grad is None else p.grad.clone() for p in self.params]
        self.state = copy.deepcopy(optimizer.state_dict())

    def assert_unchanged(self):
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        assert [id(p) for p in params] == [id(p) for p in self.params]
        for p, value, grad in zip(self.params, self.values, self.grads, strict=True):
            assert_same_bits(p, value)
            assert (p.grad is None) == (grad is None)
            if grad is not None and not grad.is_sparse:
                assert_same_bits(p.grad, grad)
        state = self.optimizer.state_dict()
        assert state["param_groups"] == self.state["param_groups"]
        assert state["state"].keys() == self.state["state"].keys()
        for key, value in state["state"].items():
            assert_same_state(value, self.state["state"][key])


class Procrustes:
    """½‖WA − B‖² with B = W*A, and its Euclidean gradient (WA − B)Aᴴ."""

    def __init__(self, *shape, dtype, target=None):
        n = shape[-1]
        noise = torch.randn(*shape, dtype=dtype)
        self.a = torch.eye(n, dtype=dtype) + 0.3 * noise / n**0.5
        self.target = rotation(*shape, dtype=dtype) if target is None else target
        self.b = self.target @ self.a

    def loss(self, w):
        return (w @ self.a - self.b).abs().square().sum() / 2

    def gradient(self, w):
        return (w @ self.a - self.b) @ self.a.mH


def near_identity(n, dtype, angle=0.5):
    """A target that a path of length about ``angle * sqrt(n)`` joins to I."""
    noise = torch.randn(n, n, dtype=dtype)
    skew = (noise - noise.mH) / (2 * n) ** 0.5
    return exp_skewh(angle * skew)
