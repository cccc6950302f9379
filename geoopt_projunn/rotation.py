r"""The rotation of a small subspace that every step comes down to."""

from typing import NamedTuple

import torch

from .linalg.rows import IN_TORCH, Products


class Rotation(NamedTuple):
    r"""The unitary :math:`R = I + W (P - I) W^H`, applied from the left.

    :math:`W` has orthonormal columns and :math:`P` is unitary to the rounding of float64, so
    that an orthogonality error of :math:`x` is carried along by :math:`x \mapsto Rx` and
    never amplified.
    """

    rows: torch.Tensor | None
    """(b, r, n), :math:`W^H` in the dtype of the point; None stands for the identity."""
    delta: torch.Tensor
    """(b, r, r), :math:`P - I`, float64 or complex128."""

    def __call__(self, v: torch.Tensor, products: Products = IN_TORCH) -> torch.Tensor:
        """Return :math:`Rv` for v of shape (b, n, p), in :math:`4rnp` flops."""
        if self.rows is None:
            return v + self._turned(v)
        return torch.baddbmm(v, self.rows.mH, self._turned(products.times(self.rows, v)))

    # No default: torch 2.11 compiles none of methods of what a compiled function makes.
    def apply_(self, x: torch.Tensor, products: Products) -> None:
        """Replace x of shape (b, n, p) by :math:`Rx`; nothing of its size is created."""
        if self.rows is None:
            x.add_(self._turned(x))
        else:
            turned = self._turned(products.times(self.rows, x))
            products.add_product_(x, self.rows, turned)

    def is_finite(self) -> torch.Tensor:
        """Return for each matrix of the batch whether its rotation is finite, (b,), bool."""
        # No entry of a rotation exceeds 2: the sums cannot overflow.
        total = self.delta.sum((-2, -1))
        if self.rows is not None:
            total = total + self.rows.sum((-2, -1))
        return torch.isfinite(total)

    def where(self, active: torch.Tensor) -> "Rotation":
        """Return the same rotation where ``active``, (b,), and none elsewhere."""
        mask = active[:, None, None]
        rows = None if self.rows is None else self.rows.where(mask, 0)
        return Rotation(rows, self.delta.where(mask, 0))

    def _turned(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.bmm(self.delta, rows.to(self.delta.dtype)).to(rows.dtype)
