"""Logarithms of unitary matrices and distances between them."""

import math
from typing import Any

import torch

from .precision import WIDE

# A real rotation this close to half a turn counts as half a turn: its plane is mostly
# rounding, and mixing two such planes would cost more than this.
_HALF_TURN = 1e-5


def unitary_log(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    r"""Return the principal logarithm of unitary matrices, and where there is one.

    At the eigenvalue -1, where the logarithm is not unique, a complex y turns by
    :math:`+\pi` and a real one in planes of pairs of eigenvectors.

    Parameters
    ----------
    y : torch.Tensor
        (*, n, n), unitary

    Returns
    -------
    log : torch.Tensor
        (*, n, n), skew-Hermitian, with eigenvalues in :math:`i[-\pi, \pi]`
    exists : torch.Tensor
        (*), bool; False for a real y of determinant -1

    Notes
    -----
    Accurate to rounding for complex y; to 1e-5 for a real y with a rotation that close to
    half a turn, to rounding otherwise. Not differentiable.
    """
    wide = y.to(WIDE[y.dtype])
    log, exists = (_complex_log if y.is_complex() else _real_log)(wide)
    return ((log - log.mH) / 2).to(y.dtype), exists


def _complex_log(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # The eigenvectors of a unitary matrix are orthogonal but within clusters; QR mends those.
    eigenvalues, vectors = torch.linalg.eig(y)
    q = torch.linalg.qr(vectors).Q
    log = (q * (1j * eigenvalues.angle()).unsqueeze(-2)) @ q.mH
    return log, torch.ones(y.shape[:-2], dtype=torch.bool, device=y.device)


def _real_log(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # C = (y + yᵀ)/2 and S = (y - yᵀ)/2 commute, and log y = S f(C), f(cos t) = t / sin t: a
    # function of a symmetric matrix, which its repeated eigenvalues do not disturb.
    s = (y - y.mT) / 2
    cosines, vectors = torch.linalg.eigh((y + y.mT) / 2)
    sines = torch.linalg.vector_norm(s @ vectors, dim=-2)
    half_turn = (sines < _HALF_TURN) & (cosines < 0)
    still = sines == 0
    ratio = torch.where(still, 1.0, torch.atan2(sines, cosines) / torch.where(still, 1.0, sines))
    log = s @ (vectors * ratio.where(~half_turn, 0.0).unsqueeze(-2)) @ vectors.mT
    # Eigenvalues ascend: the half turns come first, and two neighbours make a plane.
    pairs = y.shape[-1] // 2 * 2
    even, odd = vectors[..., 0:pairs:2], vectors[..., 1:pairs:2]
    planes = (odd * (half_turn[..., 1:pairs:2] * math.pi).unsqueeze(-2)) @ even.mT
    return log + planes - planes.mT, half_turn.sum(-1) % 2 == 0


class GeodesicDistance(torch.autograd.Function):
    r"""The geodesic distance :math:`d = \lVert \log(y x^H) \rVert_F`, with its exact gradient.

    Infinite between real matrices whose determinants differ in sign: no path joins them.
    The gradients are :math:`\nabla_y d = Ly / d` and :math:`\nabla_x d = -Lx / d` with
    :math:`L = \log(yx^H)`, zero at :math:`d = 0`.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the distances, (*), for x and y of equal shape (*, n, n)."""
        wide = WIDE[x.dtype]
        relative = y.to(wide) @ x.to(wide).mH
        distance = torch.linalg.vector_norm(torch.linalg.eigvals(relative).angle(), dim=-1)
        if not x.is_complex():
            apart = torch.linalg.det(relative) < 0
            distance = torch.where(apart, torch.inf, distance)
        ctx.save_for_backward(x, y, distance)
        return distance.to(x.real.dtype)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients with respect to x and y."""
        x, y, distance = ctx.saved_tensors
        log, _ = unitary_log(y @ x.mH)
        scale = torch.where(distance == 0, 0.0, grad / distance)[..., None, None].to(x.dtype)
        return -scale * (log @ x), scale * (log @ y)
