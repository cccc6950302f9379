r"""Steps in radians: how far a step turns, whatever the size of its direction.

A sketch gives a core :math:`K`, and :math:`S = \operatorname{skewh} K` has the angles of the step
as its eigenvalues, :math:`\pm i \theta_j`. A normalization maps :math:`S` to a generator of unit
angles, so that the learning rate becomes an angle in radians.

To add one: a function of skew-Hermitian matrices (b, r, r) in float64 or complex128, and of the
number of their angles, that is zero at zero, does not depend on the length of the matrices, and
never reads a value back to the host.
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from .linalg.dense import divided, skewh

Normalization = Callable[[torch.Tensor, int], torch.Tensor]

# In radians. Where steps are few, longer ones gain nothing.
_LARGEST_PLANNED = 0.75
# How far all steps together turn each plane.
_PLANNED_TURN = 5.0
# A generator below this many units of rounding of its direction is rounding. Of large matrices
# below twice the root of their size: points from a decomposition in float64 are unitary to
# 22 units at n = 300, and the generator of a normal direction is off by as much.
_ROUNDING = 8.0
_ROUNDING_OF_SIZE = 2.0
# The bound on the largest singular value is too large by a factor of r**(2**-9) at most: 1.011 at
# r = 256.
SQUARINGS = 8
# To scale an iteration a rough bound will do, here of r**(1/16).
FEW_SQUARINGS = 3
# Each multiplies small singular values by 1.5. Three leave planes behind by half; more of them
# would turn directions with hardly any gradient as far as the others.
NEWTON_SCHULZ_STEPS = 8


def angle(s: torch.Tensor, count: int) -> torch.Tensor:
    r"""Scale to a root mean square angle of 1: :math:`S \sqrt{2k} / \lVert S \rVert_F`.

    Parameters
    ----------
    s : torch.Tensor
        (b, r, r), skew-Hermitian
    count : int
        2k, over how many angles the mean is taken

    Returns
    -------
    torch.Tensor
        (b, r, r)

    References
    ----------
    The minimizer of a linear function over a ball of the Frobenius norm in the tangent space;
    such steps in other spaces: Pethick et al., arXiv:2502.07529 (Scion).
    """
    return _unit(s) * math.sqrt(count)


def spectral(s: torch.Tensor, count: int) -> torch.Tensor:
    r"""Turn every plane by 1 radian: :math:`S (S^H S)^{-1/2}`.

    By eight steps of Newton and Schulz, :math:`S \leftarrow \frac12 S (3I - S^H S)`, from a
    matrix of spectral norm just below 1. Planes whose angle in :math:`S` is at least an eighth of
    the largest one turn by 1 to 1 %; those with less than a fiftieth turn by less than a half.

    Parameters
    ----------
    s : torch.Tensor
        (b, r, r), skew-Hermitian
    count : int
        has no effect

    Returns
    -------
    torch.Tensor
        (b, r, r)

    References
    ----------
    The minimizer of a linear function over a ball of the spectral norm in the tangent space. At
    full rank this is known as manifold Muon: Bernstein, *Modular manifolds*, Thinking Machines
    Lab, 2025; such steps in other spaces: Pethick et al., arXiv:2502.07529 (Scion).
    """
    s = _unit(s)
    s = divided(s, _spectral_bound(s, FEW_SQUARINGS))
    for _ in range(NEWTON_SCHULZ_STEPS):
        s = torch.baddbmm(s, s, torch.bmm(s, s), beta=1.5, alpha=0.5)
    return s


NORMALIZATIONS: dict[str, Normalization] = {"angle": angle, "spectral": spectral}


def normalized(
    core: torch.Tensor, length: float | torch.Tensor, name: str, columns: int
) -> torch.Tensor:
    r"""Return the generator of a step of ``length`` radians.

    No plane turns further than :math:`\pi`: a longer generator is shortened to that.

    Parameters
    ----------
    core : torch.Tensor
        (b, r, r), of which the skew-Hermitian part is normalized
    length : float or torch.Tensor
        in radians, of either sign; a number or a tensor that multiplies (b, 1, 1)
    name : str
        one of :data:`NORMALIZATIONS`
    columns : int
        p of points (n, p): at most 2p eigenvalues of a generator are not zero

    Returns
    -------
    torch.Tensor
        (b, r, r), skew-Hermitian, zero where ``core`` is; not finite where it is not
    """
    s = skewh(core)
    # A real rotation of odd size has an axis.
    count = min(2 * columns, s.shape[-1] if s.is_complex() else s.shape[-1] // 2 * 2)
    if s.numel() == 0 or count == 0:
        return s
    unit = NORMALIZATIONS[name](s, count)
    planes = count if s.is_complex() else count // 2
    if isinstance(length, torch.Tensor) or furthest(length, planes, name) > math.pi:
        longest = 1.0 if name == "spectral" else _spectral_bound(unit, SQUARINGS)
        turned: Any = length * longest
        if isinstance(turned, torch.Tensor):
            length = length * (math.pi / abs(turned.to(s.real.dtype)).clamp(min=math.pi))
        else:
            length = length * (math.pi / max(abs(turned), math.pi))
    return length * unit


def planned_angle(
    rows: int, columns: int, k: int | None, steps: float, *, at_random: bool = False
) -> float:
    r"""Return the angle for a number of steps with a rate that falls to zero.

    :math:`\min(0.75, 5m / (kT))` radians, with m the longer side of a matrix, or twice the shorter
    one if that is less; k=None counts as m / 2. A step turns k of m / 2 planes, and the mean rate
    is half of the first, so that T steps turn each plane by about 5 radians in all. Where planes
    are drawn ``at_random`` half of the turns are in vain, and the angle is twice that. Both
    figures are measured, see "Which k, which learning rate" in the documentation.
    """
    m = min(max(rows, columns), 2 * min(rows, columns))
    share = 2.0 if k is None else m / k
    turn = 2 * _PLANNED_TURN if at_random else _PLANNED_TURN
    return min(_LARGEST_PLANNED, turn * share / steps)


def noise_floor(x: torch.Tensor) -> float:
    r"""Return the share of a direction below which a generator at x, (b, n, p), is rounding."""
    units = max(_ROUNDING, _ROUNDING_OF_SIZE * math.sqrt(x.shape[-2]))
    return units * torch.finfo(x.dtype).eps


def furthest(length: float, planes: int, name: str) -> float:
    """Return how far one plane could turn in a step of ``length`` radians if nothing stopped it."""
    return abs(length) * (1.0 if name == "spectral" else math.sqrt(planes))


def _spectral_bound(s: torch.Tensor, squarings: int) -> torch.Tensor:
    r"""Return an upper bound of the spectral norm, (b, 1, 1), by powers of s.

    :math:`\sigma \le \lVert S^p \rVert_F^{1/p} \le r^{1/(2p)} \sigma`, p = 2 ** squarings.
    """
    bound = torch.linalg.matrix_norm(s, keepdim=True)
    power = divided(s, bound)
    for i in range(1, squarings + 1):
        power = torch.bmm(power, power)
        norm = torch.linalg.matrix_norm(power, keepdim=True)
        bound = bound * norm ** (0.5**i)
        power = divided(power, norm)
    return bound


def _unit(s: torch.Tensor) -> torch.Tensor:
    """Return a batch of matrices at Frobenius norm 1, or zero."""
    s = divided(s, s.abs().amax((-2, -1), keepdim=True))
    return divided(s, torch.linalg.matrix_norm(s, keepdim=True))
