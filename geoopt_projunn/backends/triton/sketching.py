"""The launches of a sketch."""

import math
from typing import Any

import torch

from ...sketches.tangent import ANYWHERE, IN_TURN
from .kernels import bases, mixing, vectors
from .launching import (
    BM,
    MOST_IN_GRID,
    bits,
    by_dot,
    padded,
    power_of_two,
    rows_of_tile,
    stages,
    warps,
)
from .passing import Passes

# From here on there are enough of these to keep a GPU busy.
_TALL = 4096


class SketchLaunches(Passes):
    """What a step launches before it turns anything: it only writes to memory of its own."""

    def tangent(self) -> None:
        """Sketch as geoopt_projunn.sketches.tangent does."""
        memory, splits = self.memory, self.sizes.tiles.splits
        if self.sizes.k == 1:
            self._mix(mixing.ROWS)
            self._row_sums()
            test, along, partial = memory["test"], memory["vectors"], 1
        else:
            self._mix(mixing.COLUMNS)
            self._column_sums()
            test, along, partial = memory["vectors"], memory["sums"], splits
        self._generator(test, along, partial, is_checked=True)
        self._basis(memory["back"], memory["last"])
        self.pass_over(self.of_x, left=memory["narrow"], left_sums=memory["sums"])
        self._generator(memory["narrow"], memory["sums"], splits, is_checked=False)

    def _generator(
        self, rows: torch.Tensor, right: torch.Tensor, partial: int, *, is_checked: bool
    ) -> None:
        """Write the row sums of twice the generator, ``back`` and ``last``."""
        memory = self.memory
        self.pass_over(
            self.of_d,
            left=rows,
            left_sums=memory["along"],
            right=right,
            partial=partial,
            right_sums=memory["back"],
            is_checked=is_checked,
        )
        self.pass_over(
            self.of_x,
            right=memory["along"],
            partial=self.sizes.tiles.splits,
            right_sums=memory["last"],
        )

    def lsi(self) -> None:
        """Sketch as geoopt_projunn.sketches.lsi does."""
        memory = self.memory
        self._mix(mixing.NOISE)
        self.pass_over(self.of_d, left=memory["mixed"], left_sums=memory["sums"], is_checked=True)
        self._basis(memory["sums"], memory["sums"])
        self.pass_over(self.of_d, right=memory["narrow"], partial=1, right_sums=memory["back"])
        self.pass_over(self.of_x, right=memory["narrow"], partial=1, right_sums=memory["last"])

    def few(self) -> int:
        """Return how many rows or columns of the direction are mixed."""
        sizes = self.sizes
        return min(IN_TURN * sizes.k, sizes.n if sizes.k == 1 else sizes.p)

    def anywhere(self) -> int:
        """Return the bits of the share of noise in test vectors."""
        length = self.sizes.p if self.sizes.k == 1 else self.sizes.n
        return bits(ANYWHERE * math.sqrt(3 / length))

    def _mix(self, of: Any) -> None:
        sizes, few = self.sizes, self.few()
        self.launch(
            mixing.mix_kernel,
            (sizes.b, sizes.mixing.programs),
            *self.of_d,
            self.counter,
            self.x if self.rate is None else self.rate,
            self.memory64["numbers"],
            self.flags["tickets"],
            self.memory["mixed"],
            self.memory64["sums"],
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

    def _row_sums(self) -> None:
        sizes = self.sizes
        rows = BM if sizes.n >= _TALL else BM // 4
        rows = max(rows, power_of_two(-(-sizes.n // MOST_IN_GRID)))
        if sizes.tiles.is_small:
            rows = rows_of_tile(sizes.tiles, self.x.dtype, by_dot=False, is_gradient=True)
        programs = 1 if sizes.tiles.is_small else -(-sizes.n // rows)
        self.launch(
            vectors.row_sums_kernel,
            (sizes.b, programs),
            self.x,
            self.memory["mixed"],
            self.memory64["sums"],
            self.counter,
            self.memory["vectors"],
            self.memory["test"],
            self.anywhere(),
            sizes.mixing.programs,
            sizes.n,
            sizes.width,
            self.few(),
            PARTS=sizes.parts,
            BM=rows,
            BN=sizes.tiles.block,
            STAGES=stages(sizes.tiles, sizes.width, self.x.dtype, is_gradient=True),
        )

    def _column_sums(self) -> None:
        sizes = self.sizes
        self.launch(
            vectors.column_sums_kernel,
            (sizes.b, sizes.tiles.blocks, sizes.tiles.splits),
            self.x,
            self.memory["mixed"],
            self.memory64["sums"],
            self.counter,
            self.memory["vectors"],
            self.memory["sums"],
            self.anywhere(),
            sizes.mixing.programs,
            sizes.n,
            sizes.width,
            self.few(),
            sizes.tiles.rows_each,
            K=sizes.k,
            PADDED=padded(sizes.count),
            BY_DOT=by_dot(sizes.count),
            PARTS=sizes.parts,
            BM=rows_of_tile(
                sizes.tiles, self.x.dtype, by_dot=by_dot(sizes.count), is_gradient=True
            ),
            BN=sizes.tiles.block,
            STAGES=stages(sizes.tiles, sizes.tiles.rows_each, self.x.dtype, is_gradient=True),
        )

    def _basis(self, plus: torch.Tensor, minus: torch.Tensor) -> None:
        sizes, share, memory64 = self.sizes, self.sizes.basis, self.memory64
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
        self.launch(
            bases.gather_kernel,
            (sizes.b, share.programs),
            plus,
            minus,
            memory64["numbers"],
            self.flags["tickets"],
            memory64["squares"],
            *self.of_d[2:],
            memory64["sketched"],
            memory64["gram_of_sketched"],
            memory64["largest_of_sketched"],
            memory64["seen"],
            memory64["by_of_sketched"],
            share.each,
            sizes.tiles.splits if of_column_sums else sizes.tiles.blocks,
            sizes.tiles.splits * sizes.tiles.blocks,
            length,
            sizes.width,
            RULE=self.rule.rule,
            HAS_MOST=self.rule.has_most,
            **alike,
        )
        self.launch(
            bases.basis_kernel,
            (sizes.b, share.programs),
            self.flags["tickets"],
            memory64["sketched"],
            memory64["by_of_sketched"],
            memory64["gram_of_sketched"],
            self.memory["narrow"],
            memory64["q"],
            memory64["again"],
            share.each,
            length,
            sizes.width,
            **alike,
        )
