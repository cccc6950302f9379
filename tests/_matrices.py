"""Matrices of known rank and spectrum, and the formulas of the textbook."""

import math
from collections.abc import Sequence

import torch

from geoopt_projunn import retractions, sketches

REAL_DTYPES = (torch.float32, torch.float64)
WIDE_DTYPES = (torch.float64, torch.complex128)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)

# A new entry of either table runs into every test that names them.
RETRACTIONS = tuple(retractions.RETRACTIONS)
SKETCHES = tuple(sketches.SKETCHES)


def eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.complex128 if dtype.is_complex else torch.float64


def skewh(a: torch.Tensor) -> torch.Tensor:
    return (a - a.mH) / 2


def hermitian(a: torch.Tensor) -> torch.Tensor:
    return (a + a.mH) / 2


def eye_like(a: torch.Tensor) -> torch.Tensor:
    return torch.eye(a.shape[-1], dtype=a.dtype)


def unitary(*size: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Haar distributed; a real one has determinant +1, so that a path joins any two."""
    q = polar_reference(torch.randn(*size, dtype=wide(dtype)))
    if not dtype.is_complex:
        q[..., 0] *= torch.linalg.slogdet(q).sign.unsqueeze(-1)
    return q.to(dtype)


def skew(
    *size: int, rank: int | None = None, norm: float = 1.0, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Skew-Hermitian of the given rank (even if real) and Frobenius norm."""
    *batch, n, _ = size
    rank = n if rank is None else rank
    a = torch.randn(*batch, n, rank, dtype=wide(dtype))
    omega = a @ skewh(torch.randn(*batch, rank, rank, dtype=wide(dtype))) @ a.mH
    omega = skewh(omega)
    return (norm * omega / torch.linalg.matrix_norm(omega, keepdim=True)).to(dtype)


def tangent_at(x: torch.Tensor, rank: int | None = None, norm: float = 1.0) -> torch.Tensor:
    """Tangent vector at x of the given rank and norm."""
    omega = skew(*x.shape, rank=rank, norm=norm, dtype=wide(x.dtype))
    return (omega @ x.to(omega.dtype)).to(x.dtype)


def turning(
    angles: Sequence[float], n: int, dtype: torch.dtype = torch.float64, tail: float = 1.0
) -> torch.Tensor:
    """Orthogonal (n, n) that turns random planes by these angles; the rest times ``tail``."""
    blocks = [
        torch.tensor([[math.cos(t), -math.sin(t)], [math.sin(t), math.cos(t)]], dtype=torch.float64)
        for t in angles
    ]
    rest = tail * torch.eye(n - 2 * len(angles), dtype=torch.float64)
    q = unitary(n, n)
    return (q @ torch.block_diag(*blocks, rest) @ q.mT).to(dtype)


def exponential_reference(core: torch.Tensor) -> torch.Tensor:
    # By eigenvectors: torch.linalg.matrix_exp of a single matrix has a wrong coefficient that
    # costs it five digits at norms near 0.05 (pytorch issue 196592).
    values, vectors = torch.linalg.eigh(-1j * skewh(core).to(torch.complex128))
    p = (vectors * torch.exp(1j * values).unsqueeze(-2)) @ vectors.mH
    return p if core.is_complex() else p.real


def polar_reference(a: torch.Tensor) -> torch.Tensor:
    u, _, vh = torch.linalg.svd(a)
    return u @ vh


def cayley_reference(core: torch.Tensor) -> torch.Tensor:
    s, eye = skewh(core), eye_like(core)
    return torch.linalg.solve(eye - s / 2, eye + s / 2)


def retraction_reference(name: str, core: torch.Tensor) -> torch.Tensor:
    """The unitary P that a retraction makes of a core."""
    if name == "polar":
        return polar_reference(eye_like(core) + core)
    return {"exponential": exponential_reference, "cayley": cayley_reference}[name](core)


def step_reference(name: str, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The full-rank step from x along a tangent vector, in float64."""
    x, u = x.to(wide(x.dtype)), u.to(wide(u.dtype))
    return retraction_reference(name, skewh(u @ x.mH)) @ x


def proju_reference(x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """The part of u without the Hermitian part of its generator."""
    return skewh(u @ x.mH) @ x


def inner_reference(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return torch.diagonal(u.mH @ v, dim1=-2, dim2=-1).sum(-1).real
