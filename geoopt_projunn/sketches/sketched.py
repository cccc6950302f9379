"""What a sketch returns, and what sketches share."""

from typing import NamedTuple

import torch

from ..linalg.dense import length_of, skewh
from ..linalg.hashing import uniform
from ..linalg.rows import Products, is_square


class Sketched(NamedTuple):
    """The generator of a step in a small basis."""

    rows: torch.Tensor | None
    """(b, r, n), orthonormal, float64 or complex128; None stands for the identity."""
    core: torch.Tensor
    """(b, r, r), float64 or complex128."""

    def times(self, factor: float | torch.Tensor) -> "Sketched":
        """Return a multiple of the generator."""
        # Not _replace, which torch 2.8 does not compile.
        return Sketched(self.rows, factor * self.core)

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
        r"""Add ``scale`` times a direction with this generator to d, in place.

        The tangent vector v with :math:`\Omega = \operatorname{skewh}(v x^H)` is
        :math:`v = (2I - x x^H)\, \Omega x`; for a square x it is the velocity :math:`\Omega x`.
        """
        velocity = scale * self.velocity(x, products)
        if self.rows is None:
            d.add_(velocity if is_square(x) else 2 * velocity - x @ (x.mH @ velocity))
            return
        rows = self.rows.to(x.dtype)
        if not is_square(x):
            rows = 2 * rows - products.times_adjoint(products.times(rows, x), x)
        products.add_product_(d, rows, velocity)


def above(floor: float, core: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Return a core, or zero where its skew part is below a share of the length of another."""
    if floor == 0:
        return core
    # So that what is not a number stays one.
    return core.masked_fill(length_of(skewh(core)) <= floor * length_of(seen), 0)


def test_rows(x: torch.Tensor, k: int, counter: torch.Tensor, length: int) -> torch.Tensor:
    """Draw k rows for each point, uniform in (-1, 1), by the hash of the step's number."""
    return uniform(counter, k * length).to(x.dtype).view(-1, k, length)
