"""Problems over one unitary matrix, each with a known best value.

A problem gives the Euclidean gradient at a point, on a fresh mini-batch where it has batches,
and the suboptimality: how far the (population) loss is above its minimum on the manifold.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from geoopt_projunn.linalg.dense import haar


@dataclass
class Problem:
    """One instance, drawn from a seed."""

    start: torch.Tensor
    gradient: Callable[[torch.Tensor], torch.Tensor]
    suboptimality: Callable[[torch.Tensor], float]


def rotation(n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Draw from the Haar measure; a real matrix with determinant 1."""
    x = haar(n, n, dtype=dtype)
    if not dtype.is_complex and torch.linalg.det(x) < 0:
        x[:, 0] *= -1
    return x


def procrustes(n: int, noise: float) -> Problem:
    """Fit B by WA, full batch; with noise the residual at the solution is large."""
    a = torch.randn(n, 2 * n) / math.sqrt(2 * n)
    b = rotation(n) @ a + noise * torch.randn(n, 2 * n) / math.sqrt(2 * n)
    gram, cross = a @ a.mT, b @ a.mT
    a64, b64 = a.double(), b.double()
    u, s, vh = torch.linalg.svd(b64 @ a64.mT)
    s[-1] *= torch.linalg.det(u @ vh).sign()
    least = 0.5 * (a64.square().sum() + b64.square().sum()) - s.sum()
    return Problem(
        rotation(n),
        lambda w: w @ gram - cross,
        lambda w: float(0.5 * (w.double() @ a64 - b64).square().sum() - least),
    )


def regression(n: int, label_noise: float, batch: int = 32) -> Problem:
    """Find a rotation from pairs (x, Wx + noise), inputs with a spectrum from 1 to 0.1."""
    target = rotation(n)
    root = rotation(n) * torch.logspace(0, -1, n)

    def gradient(w: torch.Tensor) -> torch.Tensor:
        x = root @ torch.randn(n, batch)
        residual = (w - target) @ x + label_noise * torch.randn(n, batch)
        return residual @ x.mT / batch

    return Problem(
        rotation(n), gradient, lambda w: float(0.5 * ((w - target) @ root).square().sum())
    )


def random_unitary(n: int, batch: int = 16) -> Problem:
    """Learn a Haar unitary from its action on random vectors (the paper's task)."""
    target = rotation(n, torch.complex64)

    def gradient(w: torch.Tensor) -> torch.Tensor:
        x = torch.randn(n, batch, dtype=torch.complex64)
        return (w - target) @ x @ x.mH / batch

    return Problem(
        rotation(n, torch.complex64),
        gradient,
        lambda w: float(0.5 * torch.linalg.matrix_norm(w - target) ** 2),
    )


def brockett(n: int) -> Problem:
    """Minimize tr(WᵀAWN): the columns become eigenvectors, in the order of N's diagonal."""
    a = torch.randn(n, n) / math.sqrt(2 * n)
    a = a + a.mT
    weights = torch.arange(1, n + 1) / n
    least = float((torch.linalg.eigvalsh(a.double()).flip(0) * weights.double()).sum())
    a64, weights64 = a.double(), weights.double()
    return Problem(
        rotation(n),
        lambda w: 2 * (a @ w) * weights,
        lambda w: float((w.double() * (a64 @ w.double()) * weights64).sum()) - least,
    )


def joint_diagonalization(n: int, matrices: int = 8) -> Problem:
    """Diagonalize several symmetric matrices that share their eigenvectors at once."""
    common = rotation(n)
    spectra = torch.randn(matrices, 1, n)
    stack = (common * spectra) @ common.mT

    def off_diagonal(w: torch.Tensor) -> torch.Tensor:
        turned = w.mT @ stack @ w
        return turned - torch.diag_embed(turned.diagonal(dim1=-2, dim2=-1))

    return Problem(
        # From afar the problem has local minima; the methods are compared within one basin.
        common @ torch.linalg.matrix_exp(0.2 * _skew(n)),
        lambda w: (4 * stack @ w @ off_diagonal(w)).sum(0) / n,
        lambda w: float(off_diagonal(w).square().sum() / n),
    )


def _skew(n: int) -> torch.Tensor:
    a = torch.randn(n, n) / math.sqrt(n)
    return a - a.mT


PROBLEMS: dict[str, Callable[[int], Problem]] = {
    "Procrustes, large residual": lambda n: procrustes(n, noise=2.0),
    "Procrustes, consistent": lambda n: procrustes(n, noise=0.0),
    "regression": lambda n: regression(n, label_noise=0.0),
    "regression, noisy labels": lambda n: regression(n, label_noise=0.1),
    "random unitary": random_unitary,
    "Brockett": brockett,
    "joint diagonalization": joint_diagonalization,
}
