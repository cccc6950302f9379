"""The tangent sketch: of a step itself, not of the gradient."""

import math
from collections.abc import Callable

import torch

from ..linalg.basis import orthonormalize
from ..linalg.dense import skewh
from ..linalg.hashing import in_turn
from ..linalg.precision import WIDE
from ..linalg.rows import (
    IN_TORCH,
    Products,
    generator_parts,
    generator_rows,
    is_square,
    row_norms,
    tangent_rows,
)
from .sketched import Sketched, above, test_rows

# Rows or columns of the gradient for each test vector of the tangent sketch, combined by all of
# them. All rows would cost one more pass over the gradient and save no steps.
IN_TURN = 4
# Beside test vectors of length one made of the gradient: enough to reach what is
# outside of it, too little to show where the gradient has full rank.
ANYWHERE = 0.3


def tangent(
    x: torch.Tensor,
    d: torch.Tensor,
    k: int,
    counter: torch.Tensor,
    products: Products = IN_TORCH,
    floor: float = 0.0,
) -> Sketched:
    r"""Sketch the tangent step itself: every part of it that involves one of k directions.

    With :math:`Q = \operatorname{orth}(\Omega T)` for k test vectors :math:`T` and
    :math:`P = QQ^H`, the result is :math:`P\Omega + \Omega P - P\Omega P`, of rank 2k: the
    orthogonal projection of :math:`\Omega` on the skew-Hermitian matrices that vanish off
    :math:`P`. The normal part of a gradient, which does not go to zero at a solution, never
    enters.

    The test vectors are :math:`T = DH + G`, new at each step: random combinations of 4k columns
    of :math:`D`, the next ones in turn, of unit length, plus a smaller part in a random
    direction. So every gradient is found sooner or later. If
    :math:`2 \operatorname{rank} D \le k`, as for batches of k / 2, they span all of
    :math:`\Omega`, and the step has full rank.
    For k = 1 rows take the place of columns, :math:`T = x (D^H H + G)`. On mini-batches rows need
    fewer steps than columns at k = 1, and more from k = 3 on.

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
        The generator is a difference of products of ``d`` with the test vectors. If it is below
        this share of them, it is rounding of a normal direction, and the core is zero.

    Returns
    -------
    Sketched
        :math:`r = \min(2k, n)`; the core is skew-Hermitian to the last bit

    Notes
    -----
    Four passes over ``x`` and two over ``d`` (four with torch's own products);
    :math:`16knp + 8k^2n` flops.
    """
    n, p = x.shape[-2:]
    # Of rows there are n, each of length p; of columns the other way round.
    number, length = (n, p) if k == 1 else (p, n)
    count = min(IN_TURN * k, number)
    turn = in_turn(counter, count, number)
    some, anywhere = test_rows(x, k, counter, count + length).split((count, length), dim=-1)
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
    test = test_rows(x, k if is_square(x) else min(2 * k, n), counter, n)
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
    count = min(IN_TURN * k, n)
    turn = in_turn(counter, count, n)
    some, anywhere = test_rows(b, k, counter, count + n).split((count, n), dim=-1)
    test = _mostly(torch.bmm(some, products.rows_at(b, turn)), anywhere)
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


def _mostly(rows: torch.Tensor, anywhere: torch.Tensor) -> torch.Tensor:
    """Return the rows at unit length with a share of random ones, uniform in (-1, 1)."""
    # Of unit length, for what follows multiplies them with the gradient once more.
    unit = _unit(rows)
    # Its sign is that of an inner product of the row and the noise, which flips with d, so that -d
    # is sketched as d is. (That of a sum would be rounding where entries cancel, as after a
    # softmax.) Imaginary parts meet other entries of the noise. Entries have variance 1/3.
    noise = anywhere.real
    toward = (unit.real * noise).sum(-1, keepdim=True)
    if unit.is_complex():
        toward += (unit.imag * noise.roll(-1, -1)).sum(-1, keepdim=True)
    share = torch.full_like(toward, ANYWHERE * math.sqrt(3 / rows.shape[-1])).copysign_(toward)
    return unit.addcmul_(share, anywhere)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    # In float64: the squares of large or small float32 entries leave its range.
    wide = rows.to(WIDE[rows.dtype])
    tiny = torch.finfo(wide.dtype).tiny
    return (wide / row_norms(wide).clamp(min=tiny)).to(rows.dtype)
