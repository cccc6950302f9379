"""Products of a few rows with matrices that lie on several processes.

Rows are whole, and the same bits, on every process. Let the rows of x lie on different ones: then
``rows @ x`` is a sum over them, and of ``rows @ x.mH`` each has a part. Both exchange as many
numbers as the result has, whatever the size of x.
"""

from collections.abc import Callable
from typing import cast

import torch

from ...linalg.rows import IN_TORCH, Products
from . import collectives
from .layout import Layout


class Spread:
    """A batch of matrices, (b, n, m), of which this process holds a part.

    It has what the method asks a tensor for; all else it does by products.
    """

    def __init__(self, local: torch.Tensor, layout: Layout) -> None:
        self.local, self.layout = local, layout
        self.shape = torch.Size((len(local), layout.rows.size, layout.columns.size))
        self.dtype, self.device = local.dtype, local.device

    @classmethod
    def tensor(cls, local: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Return one for functions that multiply what they take by :class:`SpreadProducts`."""
        return cast(torch.Tensor, cls(local, layout))

    def is_complex(self) -> bool:
        """Return whether the entries are complex."""
        return self.local.is_complex()


class SpreadProducts(Products):
    """Products with a :class:`Spread`; their results are the same bits on every process.

    Parameters
    ----------
    local : callable
        Given the part of a process, who multiplies with it.
    """

    def __init__(self, local: Callable[[torch.Tensor], Products]) -> None:
        self._local = local

    def times(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``rows @ x``."""
        own, layout = _parts(x)
        product = self._local(own).times(layout.rows.part(rows), own)
        return _averaged(layout.columns.whole(layout.rows.total(product)), layout)

    def times_adjoint(self, rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """Return ``rows @ x.mH``."""
        own, layout = _parts(x)
        product = self._local(own).times_adjoint(layout.columns.part(rows), own)
        return _averaged(layout.rows.whole(layout.columns.total(product)), layout)

    def both_sides(
        self, left: torch.Tensor, right: torch.Tensor, x: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``left @ x`` and ``right @ x.mH``, averaged together."""
        own, layout = _parts(x)
        left, right = layout.rows.part(left), layout.columns.part(right)
        along, back = self._local(own).both_sides(left, right, own)
        along = layout.columns.whole(layout.rows.total(along))
        back = layout.rows.whole(layout.columns.total(back))
        if layout.averaged is None:
            return along, back
        both = _averaged(torch.cat((along.flatten(1), back.flatten(1)), dim=1), layout)
        first, second = both.split((along[0].numel(), back[0].numel()), dim=1)
        return first.view(along.shape), second.view(back.shape)

    def rows_at(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return some rows of x, whoever has them."""
        own, layout = _parts(x)
        inside, index = _within(index, layout.rows.own)
        if own.shape[-2] > 0:
            rows = IN_TORCH.rows_at(own, index).where(inside.unsqueeze(-1), 0)
        else:
            rows = own.new_zeros(*index.shape, own.shape[-1])
        return _averaged(layout.columns.whole(layout.rows.total(rows)), layout)

    def columns_at(self, x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the adjoint of some columns of x."""
        own, layout = _parts(x)
        inside, index = _within(index, layout.columns.own)
        if own.shape[-1] > 0:
            rows = IN_TORCH.columns_at(own, index).where(inside.unsqueeze(-1), 0)
        else:
            rows = own.new_zeros(*index.shape, own.shape[-2])
        return _averaged(layout.rows.whole(layout.columns.total(rows)), layout)

    def set_columns_(self, x: torch.Tensor, index: torch.Tensor, rows: torch.Tensor) -> None:
        """Replace columns of x; nothing is exchanged."""
        own, layout = _parts(x)
        if own.numel() == 0:
            return
        rows = layout.rows.part(rows)
        inside, index = _within(index, layout.columns.own)
        # Columns of other processes become copies of one that is here; if there is none, of what
        # the first column is already.
        first = inside.to(torch.uint8).argmax(-1, keepdim=True)
        source = torch.arange(index.shape[-1], device=index.device).where(inside, first)
        index = index.gather(-1, source)
        rows = rows.gather(-2, source.unsqueeze(-1).expand_as(rows))
        here = inside.any(-1)[:, None, None]
        IN_TORCH.set_columns_(own, index, rows.where(here, IN_TORCH.columns_at(own, index)))

    def squared_column_norms(self, x: torch.Tensor) -> torch.Tensor:
        """Return the squared norm of every column."""
        own, layout = _parts(x)
        return layout.columns.whole(layout.rows.total(IN_TORCH.squared_column_norms(own)))

    def add_product_(self, x: torch.Tensor, rows: torch.Tensor, factor: torch.Tensor) -> None:
        """Add ``rows.mH @ factor`` to x in place; nothing is exchanged."""
        own, layout = _parts(x)
        rows, factor = layout.rows.part(rows), layout.columns.part(factor)
        self._local(own).add_product_(own, rows.contiguous(), factor.contiguous())


def _parts(x: torch.Tensor) -> tuple[torch.Tensor, Layout]:
    spread = cast(Spread, x)
    return spread.local, spread.layout


def _averaged(t: torch.Tensor, layout: Layout) -> torch.Tensor:
    return t if layout.averaged is None else collectives.mean_over(t, layout.averaged)


def _within(index: torch.Tensor, own: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of some rows are here, and where; for others the number of any that is."""
    inside = (index >= own.start) & (index < own.stop)
    return inside, (index - own.start).where(inside, 0)
