r"""Retractions as functions of a small core.

A rank-k step is :math:`x \leftarrow x + W (P - I) W^H x`. The sketch gives the orthonormal
:math:`W` and a core :math:`K`; a retraction maps :math:`K` to :math:`P - I`, :math:`P` unitary.
It returns the difference and not :math:`P`, so that a step of size 1e-12 keeps all its digits.

To add one: a function of a core (*, r, r) in float64 or complex128 that returns
:math:`P - I` with :math:`P` unitary to rounding for every finite core, agrees with
:math:`\exp(\operatorname{skewh} K) - I` to first order, and never reads a value back to the
host (so no data-dependent loop, no torch routine that checks for errors).
"""

import math
from collections.abc import Callable

import torch

from .linalg.dense import as_batch, skewh
from .linalg.rows import as_real

Retraction = Callable[[torch.Tensor], torch.Tensor]

# The Taylor polynomial of degree 8 reaches the accuracy of float64 up to a norm of 0.04: the
# squarings carry it to the longest generator. It takes no linear solve, which costs as much as
# all its products of small matrices.
TAYLOR_DEGREE = 8
_SQUARINGS = 12
LONGEST_EXPONENTIAL = 170.0
# One polishing step squares an orthogonality error, here of 1e-16 * 1e8.
LONGEST_CAYLEY = 1e8
# Frobenius-scaled Newton needs nine iterations at condition number 1e14.
NEWTON_ITERATIONS = 10
# Larger systems in larger batches go to a library that waits for the GPU.
_LARGEST_BATCHED = 16
_MOST_BATCHED = 16


def exponential(core: torch.Tensor) -> torch.Tensor:
    r"""Follow the geodesic: :math:`P = \exp(S)`, :math:`S = \operatorname{skewh} K` (projUNN-T).

    Parameters
    ----------
    core : torch.Tensor
        (*, r, r)

    Returns
    -------
    torch.Tensor
        (*, r, r), :math:`P - I`

    Notes
    -----
    A generator longer than 170 (27 full turns) is shortened to that length, so that
    :math:`P` stays unitary to rounding whatever the step.

    References
    ----------
    Kiani et al., arXiv:2203.05483, Theorem 3.2. Scaling and squaring: Higham, SIAM J. Matrix
    Anal. Appl. 26, 2005.
    """
    batch = as_batch(core)
    a = _shortened(skewh(batch), LONGEST_EXPONENTIAL) * 2.0**-_SQUARINGS
    delta = a
    for degree in range(TAYLOR_DEGREE, 1, -1):
        delta = torch.baddbmm(a, a, delta, alpha=1 / degree)
    for _ in range(_SQUARINGS):
        delta = _squared(delta)
    return delta.view(core.shape)


def long_exponential(core: torch.Tensor) -> torch.Tensor:
    """Return what :func:`exponential` does, for any length; the host reads the longest."""
    longest = float(torch.linalg.matrix_norm(skewh(core.detach())).max()) if core.numel() else 0.0
    is_long = LONGEST_EXPONENTIAL < longest < math.inf
    halvings = math.ceil(math.log2(longest / LONGEST_EXPONENTIAL)) if is_long else 0
    delta = exponential(as_batch(core / 2**halvings))
    for _ in range(halvings):
        delta = _squared(delta)
    return delta.view(core.shape)


def cayley(core: torch.Tensor) -> torch.Tensor:
    r"""Take the Cayley transform: :math:`P = (I - S/2)^{-1} (I + S/2)`, :math:`S` skew-Hermitian.

    Parameters
    ----------
    core : torch.Tensor
        (*, r, r)

    Returns
    -------
    torch.Tensor
        (*, r, r), :math:`P - I = (I - S/2)^{-1} S`, :math:`S = \operatorname{skewh} K`

    Notes
    -----
    A generator longer than 1e8 is shortened to that length, which leaves its planes within
    4e-8 of half a turn.
    """
    s = _shortened(skewh(core), LONGEST_CAYLEY)
    eye = torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
    delta = _solve(eye - s / 2, s)
    error = delta + delta.mH + delta.mH @ delta
    return delta - (error + delta @ error) / 2


def polar(core: torch.Tensor) -> torch.Tensor:
    r"""Return :math:`P - I`, :math:`P` the unitary matrix nearest to :math:`I + K` (projUNN-D).

    Newton's iteration :math:`Y \leftarrow \frac12 (\gamma Y + \gamma^{-1} Y^{-H})`, scaled by
    :math:`\gamma^2 = \lVert Y^{-1} \rVert_F / \lVert Y \rVert_F`, a fixed number of times.

    Parameters
    ----------
    core : torch.Tensor
        (*, r, r), skew-Hermitian or not

    Returns
    -------
    torch.Tensor
        (*, r, r), :math:`P - I`; where :math:`I + K` is singular, :math:`P` is one of its
        nearest unitary matrices

    References
    ----------
    Kiani et al., arXiv:2203.05483, Theorem 3.1. Higham, SIAM J. Sci. Stat. Comput. 7, 1986.
    """
    eye = torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
    # The nudge makes an exactly singular I + K invertible, below the rounding of the rest.
    norm = torch.linalg.matrix_norm(core.detach(), keepdim=True)
    delta = core + eye * (torch.finfo(core.dtype).eps * (1 + norm))
    for _ in range(NEWTON_ITERATIONS):
        # Y = I + delta and its inverse adjoint I + other; never formed, to keep small digits.
        y = eye + delta
        other = _solve(y.mH, -delta.mH)
        gamma = torch.sqrt(
            torch.linalg.matrix_norm(eye + other, keepdim=True)
            / torch.linalg.matrix_norm(y, keepdim=True)
        )
        delta = (delta * gamma + other / gamma + eye * ((gamma - 1) ** 2 / gamma)) / 2
    return delta


def _squared(delta: torch.Tensor) -> torch.Tensor:
    """Return :math:`P^2 - I`, given :math:`P - I` of shape (b, r, r)."""
    return torch.baddbmm(delta, delta, delta, beta=2)


def _shortened(s: torch.Tensor, longest: float) -> torch.Tensor:
    # Of the square, which has all derivatives at zero.
    square = as_real(s).square().sum((-2, -1), keepdim=True)
    return s * (longest / square.clamp(min=longest**2).sqrt())


def _solve(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # solve_ex and not solve, whose error check waits for the GPU.
    count = math.prod(a.shape[:-2])
    if a.is_cuda and a.shape[-1] > _LARGEST_BATCHED and count > _MOST_BATCHED:
        parts = zip(*(as_batch(t).split(_MOST_BATCHED) for t in (a, b)), strict=True)
        solved = [torch.linalg.solve_ex(*part).result for part in parts]
        return torch.cat(solved).view(b.shape)
    solution: torch.Tensor = torch.linalg.solve_ex(a, b).result
    return solution


RETRACTIONS: dict[str, Retraction] = {
    "exponential": exponential,
    "polar": polar,
    "cayley": cayley,
}
