"""Products of a few rows with large matrices that read each matrix once.

Where the rows are few, reading the matrices is all the work, and BLAS reads one for each row and
each side.
"""

import torch

from ...linalg.rows import Products
from . import kernels, operators

# Below, calling costs more than reading once saves.
_FROM_BYTES = 2**18


class StreamedProducts(Products):
    """The kernels' products of matrices stored by rows or by columns; of small ones torch's."""

    def times(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``rows @ x``."""
        if not _pays(x):
            return super().times(rows, x)
        return self.both_sides(rows, rows.new_empty(len(x), 0, x.shape[2]), x)[0]

    def times_adjoint(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``rows @ x.mH``."""
        if not _pays(x):
            return super().times_adjoint(rows, x)
        return self.both_sides(rows.new_empty(len(x), 0, x.shape[1]), rows, x)[1]

    def both_sides(
        self, left: torch.Tensor, right: torch.Tensor, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``left @ x`` and ``right @ x.mH`` in one pass over x."""
        if not _pays(x):
            return super().both_sides(left, right, x)
        if x.is_contiguous():
            return operators.both_sides(left, right, x)
        out_right, out_left = operators.both_sides(right.conj(), left.conj(), x.mT)
        return out_left.conj(), out_right.conj()

    def add_product_(self, x: torch.Tensor, rows: torch.Tensor, factor: torch.Tensor) -> None:
        """Add ``rows.mH @ factor`` to ``x`` in place."""
        if not _pays(x):
            super().add_product_(x, rows, factor)
        elif x.is_contiguous():
            operators.add_product_(x, rows, factor)
        else:
            operators.add_product_(x.mT, factor.conj(), rows.conj())


def _pays(x: torch.Tensor) -> bool:
    is_large = x.numel() * x.element_size() >= _FROM_BYTES
    # A lazily conjugated matrix is left to torch.
    return is_large and kernels.is_stored(x)
