r"""Retractions as functions of a small core.

A rank-k step is :math:`x \leftarrow x + W (P - I) W^H x`. The sketch gives the orthonormal
:math:`W` and a core :math:`K`; a retraction maps :math:`K` to :math:`P - I`, :math:`P` unitary.
It returns the difference and not :math:`P`, so that a step of size 1e-12 keeps all its digits.

To add one: a function of a core (*, r, r) in float64 or complex128 that returns
:math:`P - I` with :math:`P` unitary to rounding for every finite core, agrees with
:math:`\exp(\operatorname{skewh} K) - I` to first order, and never reads a value back to the
host (so no data-dependent loop, no torch routine that checks for errors).
"""

from collections.abc import Callable

import torch

Retraction = Callable[[torch.Tensor], torch.Tensor]

# Numerator of the [13/13] Pade approximant of exp (Higham, SIAM J. Matrix Anal. 26, 2005).
_PADE = (
    64764752532480000.0,
    32382376266240000.0,
    7771770303897600.0,
    1187353796428800.0,
    129060195264000.0,
    10559470521600.0,
    670442572800.0,
    33522128640.0,
    1323241920.0,
    40840800.0,
    960960.0,
    16380.0,
    182.0,
    1.0,
)
# Five squarings reach the accuracy of float64 up to a spectral norm of 5.4 * 2**5.
_SQUARINGS = 5
_LONGEST = 170.0
# Frobenius-scaled Newton needs nine iterations at condition number 1e14.
_NEWTON_ITERATIONS = 10


def skewh(a: torch.Tensor) -> torch.Tensor:
    r"""Return the skew-Hermitian part :math:`\frac12 (a - a^H)`."""
    return (a - a.mH) / 2


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
    Kiani et al., arXiv:2203.05483, Theorem 3.2. Pade approximant and number of squarings:
    Higham, SIAM J. Matrix Anal. Appl. 26, 2005.
    """
    s = skewh(core)
    length = torch.linalg.matrix_norm(s, keepdim=True)
    a = s * (_LONGEST / length.clamp(min=_LONGEST) / 2**_SQUARINGS)
    eye = torch.eye(core.shape[-1], dtype=a.dtype, device=a.device)
    a2 = a @ a
    a4 = a2 @ a2
    a6 = a4 @ a2
    c = _PADE
    odd = a @ (
        a6 @ (c[13] * a6 + c[11] * a4 + c[9] * a2)
        + (c[7] * a6 + c[5] * a4 + c[3] * a2 + c[1] * eye)
    )
    even = a6 @ (c[12] * a6 + c[10] * a4 + c[8] * a2) + (
        c[6] * a6 + c[4] * a4 + c[2] * a2 + c[0] * eye
    )
    delta = _solve(even - odd, 2 * odd)
    for _ in range(_SQUARINGS):
        delta = delta @ delta + 2 * delta
    return delta


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
    """
    s = skewh(core)
    eye = torch.eye(core.shape[-1], dtype=core.dtype, device=core.device)
    return _solve(eye - s / 2, s)


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
    norm = torch.linalg.matrix_norm(core, keepdim=True)
    y = core + eye * (1 + torch.finfo(core.dtype).eps * (1 + norm))
    for _ in range(_NEWTON_ITERATIONS):
        inverse = torch.linalg.inv_ex(y).inverse.mH
        gamma = torch.sqrt(
            torch.linalg.matrix_norm(inverse, keepdim=True)
            / torch.linalg.matrix_norm(y, keepdim=True)
        )
        y = (y * gamma + inverse / gamma) / 2
    return y - eye


def _solve(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # solve_ex and not solve, whose error check waits for the GPU.
    solution: torch.Tensor = torch.linalg.solve_ex(a, b).result
    return solution


RETRACTIONS: dict[str, Retraction] = {
    "exponential": exponential,
    "polar": polar,
    "cayley": cayley,
}
