r"""Sketches: the low-dimensional subspace that a rank-k step moves.

A sketch takes a point :math:`x` and an ambient direction :math:`D` (a gradient, a momentum)
and returns orthonormal rows :math:`W^H` and a core :math:`K`, such that
:math:`W \operatorname{skewh}(K) W^H` stands for the generator
:math:`\Omega = \operatorname{skewh}(D x^H)` of the step, in :math:`O(knp)`. Points and directions
are (b, n, p) with n >= p.

To add one: a function with the signature of :func:`tangent`, made of products of a few rows
with ``x`` and ``d``, that gives finite results for every finite input, non-finite ones if
``d`` is not finite, draws no random numbers (they would differ between replicas; take them
from :mod:`geoopt_projunn.linalg.hashing`) and never reads a value back to the host.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from .linalg.basis import orthonormalize
from .linalg.dense import length_of, skewh
from .linalg.hashing import uniform
from .linalg.precision import WIDE
from .linalg.rows import (
    IN_TORCH,
    Products,
    generator_parts,
    generator_rows,
    row_norms,
    tangent_rows,
)

# Rows or columns of the gradient for each test vector of the tangent sketch, combined by all of
# them. All rows would cost one more pass over the gradient and save no steps.
_IN_TURN = 4
# Beside test vectors of length one made of the gradient: enough to reach what is
# outside of it, too little to show where the gradient has full rank.
_ANYWHERE = 0.3


class Sketched(NamedTuple):
    """The generator of a step in a small basis."""

    rows: torch.Tensor | None
    """(b, r, n), orthonormal, float64 or complex128; None stands for the identity."""
    core: torch.Tensor
    """(b, r, r), float64 or complex128."""

    # No defaults, as in Rotation.
    def velocity(self, x: torch.Tensor, products: Products) -> torch.Tensor:
        r"""Return :math:`\operatorname{skewh}(K) W^H x`, (b, r, p) in the dtype of x.

        :math:`W` times this is the velocity of :math:`x` in a step of unit length.
        """
        generator = skewh(self.core)
        small = x if self.rows is None else products.times(self.rows.to(x.dtype), x)
        return torch.bmm(generator, small.to(generator.dtype)).to(x.dtype)

    def add_direction_(
        self, d: torch.Tensor, x: torch.Tensor, scale: float, products: Products
    ) -> None:
        r"""Add ``scale`` times what stands for this generator in a direction d, in place.

        Of :math:`\Omega = \operatorname{skewh}(v x^H)`, v in the tangent space, that is
        :math:`v = (2I - x x^H)\, \Omega x`; of a square x the velocity :math:`\Omega x` itself.
        """
        velocity = scale * self.velocity(x, products)
        if self.rows is None:
            d.add_(velocity if _is_square(x) else 2 * velocity - x @ (x.mH @ velocity))
            return
        rows = self.rows.to(x.dtype)
        if not _is_square(x):
            rows = 2 * rows - products.times_adjoint(products.times(rows, x), x)
        products.add_product_(d, rows, velocity)


Sketch = Callable[..., Sketched]


def tangent(
    x: torch.Tensor,
    d: torch.Tensor,
    k: int,
    counter: torch.Tensor,
    products: Products = IN_TORCH,
    floor: float = 0.0,
) -> Sketched:
    r"""Sketch the tangent step itself: everything in it that touches k directions.

    With :math:`Q = \operatorname{orth}(\Omega T)` for k test vectors :math:`T` and
    :math:`P = QQ^H`, the result is :math:`P\Omega + \Omega P - P\Omega P`, of rank 2k: the
    orthogonal projection of :math:`\Omega` on the skew-Hermitian matrices that vanish off
    :math:`P`. The normal part of a gradient, which does not go to zero at a solution, never
    enters.

    The test vectors are :math:`T = DH + G`, new at each step: random combinations of 4k columns
    of :math:`D`, the next ones in turn, of unit length, and a smaller part that lies in any
    direction. Sooner or later they meet every gradient. Where
    :math:`2 \operatorname{rank} D \le k`, as for batches of k / 2, they reach all of
    :math:`\Omega`: the step is that of full rank.
    For k = 1 rows take the place of columns, :math:`T = x (D^H H + G)`: there they need fewer
    steps on mini-batches, and from k = 3 on more.

    Parameters
    ----------
    x, d : torch.Tensor
        (b, n, p), point and direction
    k : int
        number of test vectors
    counter : torch.Tensor
        (b,), int64, the number of the step
    products : Products
        how to multiply a few rows with ``x`` and ``d``
    floor : float
        Where the generator is below this share of what it is the difference of, products of ``d``
        with the test vectors, it is rounding of a normal direction, and the core is zero.

    Returns
    -------
    Sketched
        :math:`r = \min(2k, n)`; the core is skew-Hermitian to the last bit

    Notes
    -----
    Four passes over ``x`` and two over ``d``, four by torch's own products;
    :math:`16knp + 8k^2n` flops.
    """
    n, p = x.shape[-2:]
    # Of rows there are n, each of length p; of columns the other way round.
    number, length = (n, p) if k == 1 else (p, n)
    count = min(_IN_TURN * k, number)
    turn = torch.arange(count, device=x.device).add(counter.unsqueeze(-1), alpha=count)
    turn = turn.remainder_(number)
    some, anywhere = _test_rows(x, k, counter, count + length).split((count, length), dim=-1)
    if k == 1:
        few = products.rows_at(d, turn)
        mixed = _mostly(torch.bmm(some, few), anywhere)
        test = products.times_adjoint(mixed, x)
        moved, back = products.both_sides(test, mixed, d)
        # The rows choose a subspace and no more: here alone xᴴx may be taken for I.
        forth = products.times_adjoint(moved, x)
    else:
        few = products.columns_at(d, turn)
        test = _mostly(torch.bmm(some, few), anywhere)
        back, forth = generator_parts(test, x, d, products)
    rows, core = _touching(x, d, back - forth, products)
    return Sketched(rows, above(floor, core, back))


def full_range(x: torch.Tensor, u: torch.Tensor, k: int, products: Products = IN_TORCH) -> Sketched:
    r"""Sketch a tangent vector, exactly if its rank is at most k.

    Like :func:`tangent` with random test vectors :math:`T = H`, which reach all of the range
    of :math:`\Omega` alike, however different its singular values are. The generator of a
    vector of rank k, see :func:`.linalg.rows.tangent_rows`, has rank k, or up to 2k for n > p.
    """
    n = x.shape[-2]
    counter = torch.zeros(x.shape[:1], dtype=torch.int64, device=x.device)
    test = _test_rows(x, k if _is_square(x) else min(2 * k, n), counter, n)
    return _touching(x, u, tangent_rows(test, x, u, products), products, tangent_rows)


def skew(
    b: torch.Tensor, k: int | None, counter: torch.Tensor, products: Products = IN_TORCH
) -> Sketched:
    r"""Sketch a generator that is at hand, (b, n, n), as :func:`tangent` does that of a direction.

    The test vectors are made of its rows. Two passes over it; :math:`4kn^2 + 8k^2n` flops. The
    whole of it for k=None.
    """
    if k is None:
        return Sketched(None, skewh(b.to(WIDE[b.dtype])))
    n = b.shape[-1]
    count = min(_IN_TURN * k, n)
    turn = torch.arange(count, device=b.device).add(counter.unsqueeze(-1), alpha=count)
    some, anywhere = _test_rows(b, k, counter, count + n).split((count, n), dim=-1)
    test = _mostly(torch.bmm(some, products.rows_at(b, turn.remainder_(n))), anywhere)
    return _touching(b, b, products.times(test, b), products, _rows_of_skew)


def _rows_of_skew(
    rows: torch.Tensor, _: torch.Tensor, b: torch.Tensor, products: Products
) -> torch.Tensor:
    return -products.times(rows, b)


def _touching(
    x: torch.Tensor,
    d: torch.Tensor,
    rows: torch.Tensor,
    products: Products,
    generator: Callable[..., torch.Tensor] = generator_rows,
) -> Sketched:
    r"""Keep :math:`P\Omega + \Omega P - P\Omega P`, P the projector on the span of ``rows``."""
    wide = WIDE[x.dtype]
    q = orthonormalize(rows.to(wide))
    z = generator(q.to(x.dtype), x, d, products).to(wide)
    both = torch.cat((q, z), dim=-2)
    w = orthonormalize(both)
    alpha, beta = torch.bmm(w, both.mH).tensor_split(2, dim=-1)
    half = torch.baddbmm(beta, alpha, torch.bmm(alpha.mH, beta), alpha=-0.5)
    half = torch.bmm(half, alpha.mH)
    return Sketched(w, half - half.mH)


def lsi(
    x: torch.Tensor,
    d: torch.Tensor,
    k: int,
    counter: torch.Tensor,
    products: Products = IN_TORCH,
    floor: float = 0.0,
) -> Sketched:
    r"""Sketch the ambient direction on random rows (the paper's LSI).

    :math:`D \approx (DV) V^H` with :math:`V = \operatorname{orth}(D^H H)`, :math:`H` a random
    n x k matrix, a new one at each step. What it keeps of a gradient with a large normal part
    need not descend.

    Parameters as in :func:`tangent`.

    References
    ----------
    Kiani et al., arXiv:2203.05483, section 3.2.

    Notes
    -----
    Two passes over ``d`` and one over ``x``.
    """
    rows = products.times(_test_rows(x, k, counter, x.shape[-2]), d)
    v = orthonormalize(rows.to(WIDE[x.dtype])).to(x.dtype)
    return _ambient(x, products.times_adjoint(v, d), v, products, floor)


def column(
    x: torch.Tensor,
    d: torch.Tensor,
    k: int,
    counter: torch.Tensor,
    products: Products = IN_TORCH,
    floor: float = 0.0,
) -> Sketched:
    r"""Sketch the ambient direction on k of its columns (the paper's column sampling).

    :math:`D \approx U (U^H D)`, :math:`U` an orthonormal basis of k columns drawn without
    replacement with probabilities proportional to their squared norms. As with :func:`lsi` the
    step need not descend.

    Parameters as in :func:`tangent`.

    References
    ----------
    Kiani et al., arXiv:2203.05483, section 3.2. Drawing by perturbed keys: Gumbel-top-k.

    Notes
    -----
    Three passes over ``d`` and one over ``x``.
    """
    p = x.shape[-1]
    draws = (uniform(counter, p) + 1) / 2
    keys = products.squared_column_norms(d).log() - (-draws.log()).log()
    chosen = keys.topk(k).indices
    columns = products.columns_at(d, chosen)
    u = orthonormalize(columns.to(WIDE[x.dtype])).to(x.dtype)
    return _ambient(x, u, products.times(u, d), products, floor)


def exact(x: torch.Tensor, d: torch.Tensor, floor: float = 0.0) -> Sketched:
    r"""Return the whole generator :math:`\operatorname{skewh}(d x^H)`, in :math:`O(n^2 p)`.

    Where it is below ``floor`` times the length of ``d`` it is zero.
    """
    wide = WIDE[x.dtype]
    return Sketched(None, above(floor, skewh(d.to(wide) @ x.to(wide).mH), d))


def exact_tangent(x: torch.Tensor, u: torch.Tensor) -> Sketched:
    """Return the whole generator of a tangent vector, see :func:`.linalg.rows.tangent_rows`."""
    if _is_square(x):
        return exact(x, u)
    wide = WIDE[x.dtype]
    x, u = x.to(wide), u.to(wide)
    return Sketched(None, 2 * skewh((u - x @ (x.mH @ u) / 2) @ x.mH))


def _ambient(
    x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, products: Products, floor: float
) -> Sketched:
    r"""Express :math:`a b^H x^H` (rows :math:`a^H`, :math:`b^H`) in the basis orth[a, xb].

    With the polar retraction of ``I + core`` this is, for a square x, the matrix nearest to
    :math:`x + ab^H`.
    """
    wide = WIDE[x.dtype]
    left, right = a.to(wide), products.times_adjoint(b, x).to(wide)
    rows = orthonormalize(torch.cat((left, right), dim=-2))
    core = (rows @ left.mH) @ (rows @ right.mH).mH
    return Sketched(rows, above(floor, core, core))


def above(floor: float, core: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return a core, or zero where its skew part is below a share of the length of another."""
    if floor == 0:
        return core
    # So that what is not a number stays one.
    return core.masked_fill(length_of(skewh(core)) <= floor * length_of(seen), 0)


def _is_square(x: torch.Tensor) -> bool:
    return x.shape[-2] == x.shape[-1]


def _test_rows(x: torch.Tensor, k: int, counter: torch.Tensor, length: int) -> torch.Tensor:
    return uniform(counter, k * length).to(x.dtype).view(-1, k, length)


def _mostly(rows: torch.Tensor, anywhere: torch.Tensor) -> torch.Tensor:
    """Return the rows at unit length with a share of random ones, uniform in (-1, 1)."""
    # Of unit length, for what follows multiplies them with the gradient once more.
    unit = _unit(rows)
    # With the sign of the rows, so that -d is sketched as d is. The entries have variance 1/3.
    total = unit.real.sum(-1, keepdim=True)
    share = torch.full_like(total, _ANYWHERE * math.sqrt(3 / rows.shape[-1])).copysign_(total)
    return unit.addcmul_(share, anywhere)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    # In float64: the squares of large or small float32 entries leave its range.
    wide = rows.to(WIDE[rows.dtype])
    tiny = torch.finfo(wide.dtype).tiny
    return (wide / row_norms(wide).clamp(min=tiny)).to(rows.dtype)


SKETCHES: dict[str, Sketch] = {"tangent": tangent, "lsi": lsi, "column": column}
