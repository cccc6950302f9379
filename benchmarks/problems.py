"""Problems over one unitary matrix, each but the last with a known best value.

A problem gives the Euclidean gradient at a point, on a fresh mini-batch where it has batches,
and the suboptimality: how far the (population) loss is above its minimum on the manifold. It
draws everything from its own generator, so that every method sees the same numbers.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass
class Problem:
    """One instance, drawn from a generator."""

    start: torch.Tensor
    gradient: Callable[[torch.Tensor], torch.Tensor]
    suboptimality: Callable[[torch.Tensor], float]


def rotation(g: torch.Generator, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Draw from the Haar measure; a real matrix with determinant 1."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    q, r = torch.linalg.qr(torch.randn(n, n, generator=g, dtype=wide))
    q = q * r.diagonal().sgn()
    if not dtype.is_complex:
        q[:, 0] *= torch.linalg.slogdet(q).sign
    return q.to(dtype)


def procrustes(g: torch.Generator, n: int, noise: float, samples: int) -> Problem:
    """Fit B by WA, full batch; with noise the residual at the solution is large."""
    scale = 1 / math.sqrt(samples)
    a = torch.randn(n, samples, generator=g) * scale
    b = rotation(g, n) @ a + noise * scale * torch.randn(n, samples, generator=g)
    gram, cross = a @ a.mT, b @ a.mT
    a64, b64 = a.double(), b.double()
    u, s, vh = torch.linalg.svd(b64 @ a64.mT)
    s[-1] *= torch.linalg.slogdet(u @ vh).sign
    least = 0.5 * (a64.square().sum() + b64.square().sum()) - s.sum()
    return Problem(
        rotation(g, n),
        lambda w: w @ gram - cross,
        lambda w: float(0.5 * (w.double() @ a64 - b64).square().sum() - least),
    )


def regression(g: torch.Generator, n: int, label_noise: float, batch: int) -> Problem:
    """Find a rotation from pairs (x, Wx + noise), inputs with a spectrum from 1 to 0.1."""
    target = rotation(g, n)
    root = rotation(g, n) * torch.logspace(0, -1, n)

    def gradient(w: torch.Tensor) -> torch.Tensor:
        x = root @ torch.randn(n, batch, generator=g)
        residual = (w - target) @ x + label_noise * torch.randn(n, batch, generator=g)
        return residual @ x.mT / batch

    return Problem(
        rotation(g, n), gradient, lambda w: float(0.5 * ((w - target) @ root).square().sum())
    )


def random_unitary(g: torch.Generator, n: int, batch: int = 16) -> Problem:
    """Learn a Haar unitary from its action on random vectors (the paper's task)."""
    target = rotation(g, n, torch.complex64)

    def gradient(w: torch.Tensor) -> torch.Tensor:
        x = torch.randn(n, batch, generator=g, dtype=torch.complex64)
        return (w - target) @ x @ x.mH / batch

    return Problem(
        rotation(g, n, torch.complex64),
        gradient,
        lambda w: float(0.5 * torch.linalg.matrix_norm(w - target) ** 2),
    )


def brockett(g: torch.Generator, n: int) -> Problem:
    """Minimize tr(WᵀAWN): the columns become eigenvectors, in the order of N's diagonal."""
    a = torch.randn(n, n, generator=g) / math.sqrt(2 * n)
    a = a + a.mT
    weights = torch.arange(1, n + 1) / n
    least = float((torch.linalg.eigvalsh(a.double()).flip(0) * weights.double()).sum())
    a64, weights64 = a.double(), weights.double()
    return Problem(
        rotation(g, n),
        lambda w: 2 * (a @ w) * weights,
        lambda w: float((w.double() * (a64 @ w.double()) * weights64).sum()) - least,
    )


def joint_diagonalization(g: torch.Generator, n: int, matrices: int = 8) -> Problem:
    """Diagonalize several symmetric matrices that share their eigenvectors at once."""
    common = rotation(g, n)
    spectra = torch.randn(matrices, 1, n, generator=g)
    stack = (common * spectra) @ common.mT
    away = torch.randn(n, n, generator=g) / math.sqrt(n)

    def off_diagonal(w: torch.Tensor) -> torch.Tensor:
        turned = w.mT @ stack @ w
        return turned - torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))

    return Problem(
        # From afar the problem has local minima; the methods are compared within one basin.
        common @ torch.linalg.matrix_exp(0.2 * (away - away.mT)),
        lambda w: (4 * stack @ w @ off_diagonal(w)).sum(0) / n,
        lambda w: float(off_diagonal(w).square().sum() / n),
    )


def quantized(g: torch.Generator, n: int, batch: int = 64, layers: int = 3) -> Problem:
    """Find the rotation of activations and weights that quantization to 4 bits harms least.

    Several linear layers share it; a few channels of the activations are 20 times larger than
    the others. The gradient goes straight through the rounding. The least error is not known: the
    suboptimality is the error itself, of other activations than those trained on.
    """
    weights = torch.randn(layers, n, n, generator=g) / math.sqrt(n)
    scales = torch.ones(n, 1)
    scales[torch.randperm(n, generator=g)[: max(1, n // 16)]] = 20.0
    test = scales * torch.randn(n, 8 * batch, generator=g)

    def error(w: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        exact = weights @ x
        rounded = _in_4_bits(weights @ w.mT, -1) @ _in_4_bits(w @ x, -2)
        return (rounded - exact).square().sum() / exact.square().sum()

    def gradient(w: torch.Tensor) -> torch.Tensor:
        x = scales * torch.randn(n, batch, generator=g)
        with torch.enable_grad():
            w = w.detach().requires_grad_()
            (grad,) = torch.autograd.grad(error(w, x), w)
        return grad

    return Problem(rotation(g, n), gradient, lambda w: float(error(w, test)))


def _in_4_bits(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Round to multiples of the largest entry along ``dim`` over 7, with the derivative of x."""
    step = x.detach().abs().amax(dim, keepdim=True) / 7
    return x + ((x / step).round() * step - x).detach()


PROBLEMS: dict[str, Callable[[torch.Generator, int], Problem]] = {
    "Procrustes, large residual": lambda g, n: procrustes(g, n, noise=2.0, samples=2 * n),
    "Procrustes, consistent": lambda g, n: procrustes(g, n, noise=0.0, samples=2 * n),
    "regression, batch 8": lambda g, n: regression(g, n, label_noise=0.0, batch=8),
    "regression, batch 8, noisy": lambda g, n: regression(g, n, label_noise=0.1, batch=8),
    "regression, batch 32": lambda g, n: regression(g, n, label_noise=0.0, batch=32),
    "regression, batch 32, noisy": lambda g, n: regression(g, n, label_noise=0.1, batch=32),
    "random unitary": random_unitary,
    "Brockett": brockett,
    "joint diagonalization": joint_diagonalization,
    "4-bit quantization": quantized,
}
