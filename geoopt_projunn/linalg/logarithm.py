"""Logarithms of unitary matrices."""

import math

import numpy as np
import scipy.linalg
import torch

from .dense import skewh
from .precision import WIDE


@torch.no_grad()
def unitary_log(y: torch.Tensor) -> torch.Tensor:
    r"""Return the principal logarithm of unitary matrices.

    At the eigenvalue -1, where the logarithm is not unique, a complex y turns by
    :math:`+\pi` and a real one in planes of pairs of eigenvectors. A real y of determinant -1 has
    none: the result is that of a rotation that leaves one such eigenvector where it is.

    For y (*, n, n) the result is (*, n, n), skew-Hermitian, with eigenvalues in :math:`i[-\pi,
    \pi]`. ValueError if y, the quotient of two points x and y, is not finite.

    Not differentiable: :class:`.distance.Logarithm` is. The logarithm of a real y comes from its
    real Schur form, matrix by matrix on the CPU.
    """
    if not bool(y.isfinite().all()):
        raise ValueError("`x` and `y` must be finite, but have infinite or NaN entries.")
    wide = y.to(WIDE[y.dtype])
    return skewh((_complex_log if y.is_complex() else _real_log)(wide)).to(y.dtype)


def _complex_log(y: torch.Tensor) -> torch.Tensor:
    # The eigenvectors of a unitary matrix are orthogonal but within clusters; QR mends those.
    eigenvalues, vectors = torch.linalg.eig(y)
    q = torch.linalg.qr(vectors).Q
    return (q * (1j * eigenvalues.angle()).unsqueeze(-2)) @ q.mH


def _real_log(y: torch.Tensor) -> torch.Tensor:
    matrices = y.detach().cpu().reshape(-1, *y.shape[-2:]).numpy()
    logs = np.zeros(matrices.shape)
    for index, matrix in enumerate(matrices):
        # The Schur form of an orthogonal matrix is block diagonal, to rounding: rotations of
        # planes, 1 and -1.
        form, vectors = scipy.linalg.schur(matrix, output="real")
        generator = np.zeros_like(form)
        low = np.flatnonzero(np.diagonal(form, -1))
        high = low + 1
        sine = form[high, low] - form[low, high]
        generator[high, low] = np.arctan2(sine, form[low, low] + form[high, high])
        single = np.setdiff1d(np.arange(len(form)), np.concatenate((low, high)))
        turned = single[form[single, single] < 0]
        # Two eigenvalues -1 make a plane that turns by half.
        pairs = len(turned) // 2 * 2
        generator[turned[1:pairs:2], turned[0:pairs:2]] = math.pi
        logs[index] = vectors @ (generator - generator.T) @ vectors.T
    return torch.from_numpy(logs).to(y).view(y.shape)
