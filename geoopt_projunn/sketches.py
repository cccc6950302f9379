r"""Sketches: the low-dimensional subspace that a rank-k step moves.

A sketch takes a point :math:`x` and an ambient direction :math:`D` (a gradient, a momentum)
and returns orthonormal rows :math:`W^H` and a core :math:`K`, such that
:math:`W \operatorname{skewh}(K) W^H` stands for the generator
:math:`\Omega = \operatorname{skewh}(D x^H)` of the step, in :math:`O(kn^2)`.

To add one: a function with the signature of :func:`tangent`, made of products of a few rows
with ``x`` and ``d``, that gives finite results for every finite input, non-finite ones if
``d`` is not finite, draws no random numbers (they would differ between replicas; take them
from :mod:`geoopt_projunn.linalg.hashing`) and never reads a value back to the host.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .linalg.basis import orthonormalize
from .linalg.hashing import uniform
from .linalg.precision import WIDE
from .linalg.rows import generator_rows, times_adjoint

# Weight of the unit vector that visits every coordinate in turn, beside the last basis and
# the largest rows with weight one. It rules out fixed points: see `tangent`.
_CYCLIC_WEIGHT = 0.3


class Sketched(NamedTuple):
    """The generator of a step in a small basis, and what the next step may know of it."""

    rows: torch.Tensor | None
    """(b, r, n), orthonormal, float64 or complex128; None stands for the identity."""
    core: torch.Tensor
    """(b, r, r), float64 or complex128."""
    basis: torch.Tensor
    """(b, k, n) in the dtype of the point: the basis to carry to the next step."""


class Sketch(NamedTuple):
    """A sketch and whether it learns from one step to the next."""

    run: Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor, torch.Tensor], Sketched]
    carries_basis: bool


def tangent(
    x: torch.Tensor, d: torch.Tensor, k: int, basis: torch.Tensor, counter: torch.Tensor
) -> Sketched:
    r"""Sketch the tangent step itself: everything in it that touches k directions.

    With :math:`Q = \operatorname{orth}(\Omega T)` for test vectors :math:`T` and
    :math:`P = QQ^H`, the result is :math:`P\Omega + \Omega P - P\Omega P`, of rank 2k: the
    orthogonal projection of :math:`\Omega` on the skew-Hermitian matrices that vanish off
    :math:`P`. The normal part of a gradient, which does not go to zero at a solution, never
    enters.

    Each test vector is the sum of one row of the last basis, one of the k largest rows of
    ``d`` (as :math:`x d_i^H`) and 0.3 times a unit vector, the next one at each step. With the
    first two alone there are gradients that the choice is blind to; the cycle of unit vectors
    makes up for it: if :math:`\Omega T = 0` throughout a cycle while the rest stands still, all
    columns of :math:`\Omega` are equal, and a real skew-symmetric matrix with equal columns is
    zero.

    Parameters
    ----------
    x, d : torch.Tensor
        (b, n, n), point and direction
    k : int
        number of test vectors
    basis : torch.Tensor
        (b, k, n), :math:`Q^H` of the last step, or any start
    counter : torch.Tensor
        (b,), int64, the number of the step

    Returns
    -------
    Sketched
        :math:`r = \min(2k, n)`; the core is skew-Hermitian to the last bit

    Notes
    -----
    Five passes over ``x`` and five over ``d``, :math:`18kn^2` flops.
    """
    n = x.shape[-1]
    wide = WIDE[x.dtype]
    # Rows and not columns: a reduction along columns is thirty times slower on a CPU.
    largest = torch.linalg.vector_norm(d, dim=-1).topk(k).indices
    large = times_adjoint(d.gather(-2, largest.unsqueeze(-1).expand(-1, -1, n)), x)
    turn = (counter.unsqueeze(-1) * k + torch.arange(k, device=x.device)) % n
    test = (_unit(basis) + _unit(large)).scatter_add(
        -1,
        turn.unsqueeze(-1),
        torch.full((*turn.shape, 1), _CYCLIC_WEIGHT, dtype=x.dtype, device=x.device),
    )
    q = orthonormalize(generator_rows(test, x, d).to(wide))
    basis = q.to(x.dtype)
    z = generator_rows(basis, x, d).to(wide)
    rows = orthonormalize(torch.cat((q, z), dim=-2))
    alpha, beta = rows @ q.mH, rows @ z.mH
    half = (beta - alpha @ (q @ z.mH) / 2) @ alpha.mH
    return Sketched(rows, half - half.mH, basis)


def lsi(
    x: torch.Tensor, d: torch.Tensor, k: int, basis: torch.Tensor, counter: torch.Tensor
) -> Sketched:
    r"""Sketch the ambient direction on random rows (the paper's LSI).

    :math:`D \approx (DV) V^H` with :math:`V = \operatorname{orth}(D^H R)`, :math:`R` a random
    n x k matrix that changes at each step.

    References
    ----------
    Kiani et al., arXiv:2203.05483, section 3.2.

    Notes
    -----
    Two passes over ``d`` and one over ``x``. Parameters as in :func:`tangent`.
    """
    test = uniform(counter, k * x.shape[-1]).to(x.dtype).unflatten(-1, (k, -1))
    v = orthonormalize((test @ d).to(WIDE[x.dtype])).to(x.dtype)
    return _ambient(x, times_adjoint(v, d), v, basis)


def column(
    x: torch.Tensor, d: torch.Tensor, k: int, basis: torch.Tensor, counter: torch.Tensor
) -> Sketched:
    r"""Sketch the ambient direction on k of its columns (the paper's column sampling).

    :math:`D \approx U (U^H D)`, :math:`U` an orthonormal basis of k columns drawn without
    replacement with probabilities proportional to their squared norms.

    References
    ----------
    Kiani et al., arXiv:2203.05483, section 3.2. Drawing by perturbed keys: Gumbel-top-k.

    Notes
    -----
    Three passes over ``d`` and one over ``x``. Parameters as in :func:`tangent`.
    """
    n = x.shape[-1]
    norms = torch.linalg.vector_norm(d, dim=-2)
    draws = (uniform(counter, n) + 1) / 2
    keys = 2 * norms.double().log() - (-draws.log()).log()
    chosen = keys.topk(k).indices
    columns = d.gather(-1, chosen.unsqueeze(-2).expand(-1, n, -1)).mH
    u = orthonormalize(columns.to(WIDE[x.dtype])).to(x.dtype)
    return _ambient(x, u, u @ d, basis)


def exact(x: torch.Tensor, d: torch.Tensor, basis: torch.Tensor) -> Sketched:
    r"""Return the whole generator :math:`\operatorname{skewh}(d x^H)`, in :math:`O(n^3)`."""
    product = d.to(WIDE[x.dtype]) @ x.to(WIDE[x.dtype]).mH
    return Sketched(None, (product - product.mH) / 2, basis)


def _ambient(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, basis: torch.Tensor) -> Sketched:
    r"""Express :math:`a b^H x^H` (rows :math:`a^H`, :math:`b^H`) in the basis orth[a, xb].

    With the polar retraction of ``I + core`` this is the matrix nearest to :math:`x + ab^H`.
    """
    wide = WIDE[x.dtype]
    left, right = a.to(wide), times_adjoint(b, x).to(wide)
    rows = orthonormalize(torch.cat((left, right), dim=-2))
    return Sketched(rows, (rows @ left.mH) @ (rows @ right.mH).mH, basis)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(rows, dim=-1, eps=torch.finfo(rows.dtype).tiny)


SKETCHES: dict[str, Sketch] = {
    "tangent": Sketch(tangent, carries_basis=True),
    "lsi": Sketch(lsi, carries_basis=False),
    "column": Sketch(column, carries_basis=False),
}
