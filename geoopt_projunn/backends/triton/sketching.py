"""The launches of a sketch."""

import math
from typing import Any

import torch

from ...sketches.tangent import ANYWHERE, IN_TURN
from ..spec import StepSpec
from .direction import Direction
from .kernels import bases, directions, mixing, passes, testing
from .launching import bits, by_dot, launch, padded, power_of_two
from .sizes import Sizes, as_real

MANY_WARPS = 8
"""Of a program that keeps much in registers."""
BM = 16
"""Rows of a tile."""
STAGES = 2
"""Tiles that a program fetches ahead of its work."""
# From here on there are enough of these to keep a GPU busy.
_TALL = 4096


class SketchLaunches:
    """What a step launches before it turns anything; its methods only write to memory of its own.

    Parameters
    ----------
    x : torch.Tensor
        points
    d : Direction
        what to follow
    counter, skipped : torch.Tensor
        (b,), the number of the step and the steps that were skipped
    length : float
        of the step along the direction, of a unit of the learning rate if there is a ``rate``
    rate : torch.Tensor, optional
        learning rate, of one number on the device
    spec : StepSpec
        rank, sketch, retraction and drift control
    """

    def __init__(
        self,
        x: torch.Tensor,
        d: Direction,
        counter: torch.Tensor,
        skipped: torch.Tensor,
        length: float,
        rate: torch.Tensor | None,
        spec: StepSpec,
    ) -> None:
        self.spec, self.rule, self.sizes = spec, d, Sizes.of(x, spec)
        self.x, self.of_d = as_real(x), tuple(map(as_real, d.tensors))
        self.of_x = (self.x,) * 4
        self.counter, self.skipped, self.length, self.rate = counter, skipped, length, rate
        self.kind = self.sizes.memory(self.x.dtype, x.device)
        self.wide = self.sizes.wide_memory(x.device)
        self.flags = self.sizes.flags(x.device)

    def tangent(self) -> None:
        """Sketch as geoopt_projunn.sketches.tangent does."""
        kind, splits = self.kind, self.sizes.tiles.splits
        if self.sizes.k == 1:
            self._mix(mixing.ROWS)
            self._row_sums()
            test, along, partial = kind["test"], kind["vectors"], 1
        else:
            self._mix(mixing.COLUMNS)
            self._column_sums()
            test, along, partial = kind["vectors"], kind["sums"], splits
        self._generator(test, along, partial, is_checked=True)
        self._basis(kind["back"], kind["last"])
        self.pass_over(self.of_x, left=kind["narrow"], left_sums=kind["sums"])
        self._generator(kind["narrow"], kind["sums"], splits, is_checked=False)

    def _generator(
        self, rows: torch.Tensor, right: torch.Tensor, partial: int, *, is_checked: bool
    ) -> None:
        """Write the row sums of twice the generator, ``back`` and ``last``."""
        kind = self.kind
        self.pass_over(
            self.of_d,
            left=rows,
            left_sums=kind["along"],
            right=right,
            partial=partial,
            right_sums=kind["back"],
            is_checked=is_checked,
        )
        self.pass_over(
            self.of_x, right=kind["along"], partial=self.sizes.tiles.splits, right_sums=kind["last"]
        )

    def lsi(self) -> None:
        """Sketch as geoopt_projunn.sketches.lsi does."""
        kind = self.kind
        self._mix(mixing.NOISE)
        self.pass_over(self.of_d, left=kind["mixed"], left_sums=kind["sums"], is_checked=True)
        self._basis(kind["sums"], kind["sums"])
        self.pass_over(self.of_d, right=kind["narrow"], partial=1, right_sums=kind["back"])
        self.pass_over(self.of_x, right=kind["narrow"], partial=1, right_sums=kind["last"])

    def _few(self) -> int:
        """Return how many rows or columns of the direction are mixed."""
        sizes = self.sizes
        return min(IN_TURN * sizes.k, sizes.n if sizes.k == 1 else sizes.p)

    def _anywhere(self) -> int:
        length = self.sizes.p if self.sizes.k == 1 else self.sizes.n
        return bits(ANYWHERE * math.sqrt(3 / length))

    def _mix(self, of: Any) -> None:
        sizes, few = self.sizes, self._few()
        launch(
            mixing.mix_kernel,
            (sizes.b, sizes.mixing.programs),
            *self.of_d,
            self.counter,
            self.x if self.rate is None else self.rate,
            self.wide["numbers"],
            self.flags["tickets"],
            self.kind["mixed"],
            self.wide["sums"],
            *map(bits, (self.length, *self.rule.numbers)),
            sizes.mixing.each,
            sizes.n,
            sizes.width,
            few,
            K=sizes.k,
            K_PADDED=padded(sizes.k),
            COUNT_PADDED=padded(few) if by_dot(sizes.k) else power_of_two(few),
            BY_DOT=by_dot(sizes.k),
            OF=of,
            HAS_RATE=self.rate is not None,
            **self.options(self.of_d),
            BLOCK=sizes.mixing.block,
        )

    def options(self, source: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        """Return what kernels are told of a matrix to read: it may be what a rule makes."""
        is_plain = source is self.of_x
        return {
            "RULE": directions.GRADIENT if is_plain else self.rule.rule,
            "HAS_MOST": self.rule.has_most and not is_plain,
            "PARTS": self.sizes.parts,
        }

    def pass_over(
        self,
        source: tuple[torch.Tensor, ...],
        *,
        left: torch.Tensor | None = None,
        left_sums: torch.Tensor | None = None,
        left_count: int = 0,
        more: torch.Tensor | None = None,
        right: torch.Tensor | None = None,
        partial: int = 1,
        right_sums: torch.Tensor | None = None,
        is_checked: bool = False,
    ) -> None:
        """Write column sums of ``left`` and of ``more``, row sums of ``right``; check if asked."""
        tiles, unused = self.sizes.tiles, self.x
        counts = {
            "LEFT": 0 if left is None else left_count or self.sizes.count,
            "MORE": 0 if more is None else self.sizes.sweep,
            "RIGHT": 0 if right is None else self.sizes.count,
        }
        is_short = not any(map(by_dot, counts.values()))
        is_wide = min(counts["LEFT"], counts["RIGHT"]) > 0 and by_dot(self.sizes.count)
        launch(
            passes.pass_kernel,
            (self.sizes.b, tiles.blocks, tiles.splits),
            *source,
            self.wide["numbers"],
            *(unused if t is None else t for t in (left, more, right, left_sums)),
            self.kind["own_sums"],
            unused if right_sums is None else right_sums,
            self.flags["bad"],
            self.wide["squares"],
            self.sizes.n,
            self.sizes.width,
            tiles.rows_each,
            partial,
            **counts,
            **{f"{name}_PADDED": padded(count) for name, count in counts.items()},
            **{f"{name}_BY_DOT": by_dot(count) for name, count in counts.items()},
            IS_CHECKED=is_checked,
            **self.options(source),
            BM=self._rows(is_short=is_short),
            BN=tiles.block,
            STAGES=STAGES,
            num_warps=MANY_WARPS if is_wide else 4,
        )

    def _rows(self, *, is_short: bool) -> int:
        """Return the rows of a tile: in float64 fewer are all that fits into registers."""
        # tl.dot wants 16.
        return BM // 4 if is_short and self.x.dtype == torch.float64 else BM

    def _row_sums(self) -> None:
        sizes = self.sizes
        rows = BM if sizes.n >= _TALL else BM // 4
        launch(
            testing.row_sums_kernel,
            (sizes.b, -(-sizes.n // rows)),
            self.x,
            self.kind["mixed"],
            self.wide["sums"],
            self.counter,
            self.kind["vectors"],
            self.kind["test"],
            self._anywhere(),
            sizes.mixing.programs,
            sizes.n,
            sizes.width,
            self._few(),
            PARTS=sizes.parts,
            BM=rows,
            BN=sizes.tiles.block,
            STAGES=STAGES,
        )

    def _column_sums(self) -> None:
        sizes = self.sizes
        launch(
            testing.column_sums_kernel,
            (sizes.b, sizes.tiles.blocks, sizes.tiles.splits),
            self.x,
            self.kind["mixed"],
            self.wide["sums"],
            self.counter,
            self.kind["vectors"],
            self.kind["sums"],
            self._anywhere(),
            sizes.mixing.programs,
            sizes.n,
            sizes.width,
            self._few(),
            sizes.tiles.rows_each,
            K=sizes.k,
            PADDED=padded(sizes.count),
            BY_DOT=by_dot(sizes.count),
            PARTS=sizes.parts,
            BM=self._rows(is_short=not by_dot(sizes.count)),
            BN=sizes.tiles.block,
            STAGES=STAGES,
        )

    def _basis(self, plus: torch.Tensor, minus: torch.Tensor) -> None:
        sizes, share, wide = self.sizes, self.sizes.basis, self.wide
        of_column_sums = self.spec.sketch == "lsi"
        length = sizes.p if of_column_sums else sizes.n
        alike = {
            "COUNT": sizes.count,
            "PADDED": padded(sizes.count),
            "OF_COLUMN_SUMS": of_column_sums,
            "PARTS": sizes.parts,
            "BLOCK": share.block,
            "num_warps": warps(padded(sizes.count)),
        }
        launch(
            bases.gather_kernel,
            (sizes.b, share.programs),
            plus,
            minus,
            wide["numbers"],
            self.flags["tickets"],
            wide["squares"],
            *self.of_d[2:],
            wide["rows"],
            wide["gram"],
            wide["largest"],
            wide["seen"],
            wide["by"],
            share.each,
            sizes.tiles.splits if of_column_sums else sizes.tiles.blocks,
            sizes.tiles.splits * sizes.tiles.blocks,
            length,
            sizes.width,
            RULE=self.rule.rule,
            HAS_MOST=self.rule.has_most,
            **alike,
        )
        launch(
            bases.basis_kernel,
            (sizes.b, share.programs),
            self.flags["tickets"],
            wide["rows"],
            wide["by"],
            wide["gram"],
            self.kind["narrow"],
            wide["q"],
            wide["again"],
            share.each,
            length,
            sizes.width,
            **alike,
        )


def warps(rows: int) -> int:
    """Return how many warps a program needs for some padded rows in float64."""
    return 4 if rows <= BM else MANY_WARPS
