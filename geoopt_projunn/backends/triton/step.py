"""The launches of a step."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ...sketches import _ANYWHERE, _IN_TURN
from ..contract import StepSpec
from .kernels import bases, directions, mixing, passes, retractions, turning
from .launching import Tiles, bits, by_dot, carve, launch, padded, power_of_two

SKETCHES = {"tangent": bases.TANGENT, "lsi": bases.LSI}
RETRACTIONS = {
    "exponential": retractions.EXPONENTIAL,
    "cayley": retractions.CAYLEY,
    "polar": retractions.POLAR,
}
# Of partial sums of squares; one program adds them up.
_PROGRAMS = 64
_BLOCK_OF_SQUARES = 1024
# Of a vector along which one program works: of one row, of several, and of a basis, where 16 rows
# leave no register unused and more take shorter blocks.
_BLOCK = 256
_BLOCK_OF_ROWS = 32
_BLOCK_OF_BASIS = 64 * 16


@dataclass
class Direction:
    """A gradient, what its rule keeps, and which rule it is: together they are a direction."""

    grad: torch.Tensor
    """(b, n, p)"""
    first: torch.Tensor
    """The first buffer of the rule, like the gradient, or the gradient."""
    second: torch.Tensor
    """Adam's second moments, one for each entry or one for each matrix, or the gradient."""
    most: torch.Tensor
    """The largest of them, or the gradient."""
    rule: Any
    """One of those in :mod:`.kernels.directions`."""
    has_most: bool
    numbers: tuple[float, float, float]
    """As in :class:`..contract.NativeRule`."""


class Step:
    """One step of a batch of matrices, (b, n, p), contiguous, in place.

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
        assert spec.k is not None
        b, n, p = x.shape
        self.parts = 2 if x.is_complex() else 1
        self.b, self.n, self.p, self.width = b, n, p, self.parts * p
        self.k, self.count = spec.k, self.parts * spec.k
        self.sweep = self.parts * min(spec.sweep, p)
        self.tiles = Tiles.of(n, self.width, x.element_size() // self.parts)
        self.x, self.d = _real(x), d
        self.of_d = tuple(map(_real, (d.grad, d.first, d.second, d.most)))
        self.of_x = (self.x,) * 4
        self.counter, self.skipped, self.length, self.rate = counter, skipped, length, rate
        self.spec = spec
        self.wide, self.kind, self.int = self._memory()

    def _memory(self) -> tuple[dict[str, torch.Tensor], ...]:
        n, width, tiles, count = self.n, self.width, self.tiles, self.count
        of_rows, of_columns = count * n, count * width
        longest = max(of_rows, of_columns)
        kind = {
            **{"raw": longest, "test": longest, "mixed": longest, "narrow": longest},
            **{"sums": 2 * tiles.splits * of_columns, "along": tiles.splits * of_columns},
            **{"back": tiles.blocks * of_rows, "last": tiles.blocks * of_rows},
            **{"basis": 2 * of_rows, "own": self.sweep * n},
            **{"own_sums": tiles.splits * self.sweep * width, "errors": self.sweep * width},
            "error_sums": tiles.blocks * self.sweep * n,
        }
        wide = {
            **{"numbers": int(directions.NUMBERS.value), "squares": _PROGRAMS},
            **{"q": of_rows, "rows": 2 * longest, "firsts": 2 * longest},
            **{"delta": (2 * count) ** 2, "norms": tiles.blocks},
        }
        whole = {"finite": 1, "bad": tiles.splits * tiles.blocks}
        return (
            carve(wide, self.b, torch.float64, self.x.device),
            carve(kind, self.b, self.x.dtype, self.x.device),
            carve(whole, self.b, torch.int32, self.x.device),
        )

    def take(self) -> None:
        """Launch all of it."""
        if self.d.rule == directions.ADAM_SCALAR:
            self._square()
        if self.spec.sketch == "tangent":
            self._tangent()
        else:
            self._lsi()
        # The place for a change of the core, between sketch and retraction, is in this kernel.
        self._core()
        self._turn()
        if self.sweep:
            self._sweep()

    def _tangent(self) -> None:
        kind, splits = self.kind, self.tiles.splits
        if self.k == 1:
            self._mix(mixing.ROWS, kind["mixed"])
            self._row_sums(kind["mixed"], kind["test"])
            along, partial = kind["mixed"], 1
        else:
            self._mix(mixing.COLUMNS, kind["test"])
            self._pass(self.of_x, left=kind["test"], left_sums=kind["sums"])
            along, partial = kind["sums"], splits
        self._generator(kind["test"], along, partial, is_checked=True)
        self._basis(kind["back"], kind["last"], kind["narrow"])
        self._pass(self.of_x, left=kind["narrow"], left_sums=kind["sums"])
        self._generator(kind["narrow"], kind["sums"], splits, is_checked=False)

    def _generator(
        self, rows: torch.Tensor, right: torch.Tensor, partial: int, *, is_checked: bool
    ) -> None:
        """Write the row sums of twice the generator, ``back`` and ``last``."""
        kind = self.kind
        self._pass(
            self.of_d,
            left=rows,
            left_sums=kind["along"],
            right=right,
            partial=partial,
            right_sums=kind["back"],
            is_checked=is_checked,
        )
        self._pass(
            self.of_x, right=kind["along"], partial=self.tiles.splits, right_sums=kind["last"]
        )

    def _lsi(self) -> None:
        kind = self.kind
        self._mix(mixing.NOISE, kind["test"])
        self._pass(self.of_d, left=kind["test"], left_sums=kind["sums"], is_checked=True)
        self._basis(kind["sums"], kind["sums"], kind["narrow"])
        self._pass(self.of_d, right=kind["narrow"], partial=1, right_sums=kind["back"])
        self._pass(self.of_x, right=kind["narrow"], partial=1, right_sums=kind["last"])

    def _square(self) -> None:
        launch(
            directions.squares_kernel,
            (self.b, _PROGRAMS),
            self.of_d[0],
            self.wide["squares"],
            self.n * self.width,
            BLOCK=_BLOCK_OF_SQUARES,
        )

    def _mix(self, of: Any, rows: torch.Tensor) -> None:
        few = min(_IN_TURN * self.k, self.n if self.k == 1 else self.p)
        length = self.p if self.k == 1 else self.n
        launch(
            mixing.mix_kernel,
            (self.b,),
            *self.of_d,
            self.counter,
            self.x if self.rate is None else self.rate,
            self.wide["squares"],
            self.wide["numbers"],
            self.kind["raw"],
            rows,
            *map(bits, (self.length, *self.d.numbers, _ANYWHERE * math.sqrt(3 / length))),
            self.n,
            self.width,
            few,
            K=self.k,
            K_PADDED=padded(self.k),
            COUNT_PADDED=padded(few) if by_dot(self.k) else power_of_two(few),
            BY_DOT=by_dot(self.k),
            OF=of,
            HAS_RATE=self.rate is not None,
            PROGRAMS=_PROGRAMS,
            **self._rule(self.of_d),
            BLOCK=_BLOCK if self.k == 1 else _BLOCK_OF_ROWS,
        )

    def _rule(self, source: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        is_plain = source is self.of_x
        return {
            "RULE": directions.GRADIENT if is_plain else self.d.rule,
            "HAS_MOST": self.d.has_most and not is_plain,
            "PARTS": self.parts,
        }

    def _pass(
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
        tiles, unused = self.tiles, self.x
        counts = {
            "LEFT": 0 if left is None else left_count or self.count,
            "MORE": 0 if more is None else self.sweep,
            "RIGHT": 0 if right is None else self.count,
        }
        launch(
            passes.pass_kernel,
            (self.b, tiles.blocks, tiles.splits),
            *source,
            self.wide["numbers"],
            *(unused if t is None else t for t in (left, more, right, left_sums)),
            self.kind["own_sums"],
            unused if right_sums is None else right_sums,
            self.int["bad"],
            self.n,
            self.width,
            tiles.rows_each,
            partial,
            **counts,
            **{f"{name}_PADDED": padded(count) for name, count in counts.items()},
            **{f"{name}_BY_DOT": by_dot(count) for name, count in counts.items()},
            IS_CHECKED=is_checked,
            **self._rule(source),
            BM=16,
            BN=tiles.block,
        )

    def _row_sums(self, right: torch.Tensor, sums: torch.Tensor) -> None:
        rows = 16
        launch(
            passes.row_sums_kernel,
            (self.b, -(-self.n // rows)),
            self.x,
            right,
            sums,
            self.n,
            self.width,
            COUNT=self.count,
            PADDED=padded(self.count),
            PARTS=self.parts,
            BM=rows,
            BN=self.tiles.block,
        )

    def _basis(self, plus: torch.Tensor, minus: torch.Tensor, narrow: torch.Tensor) -> None:
        of_column_sums = self.spec.sketch == "lsi"
        size = max(16, power_of_two(self.count))
        launch(
            bases.basis_kernel,
            (self.b,),
            plus,
            minus,
            self.tiles.splits if of_column_sums else self.tiles.blocks,
            self.wide["rows"],
            self.wide["firsts"],
            narrow,
            self.wide["q"],
            self.p if of_column_sums else self.n,
            self.width,
            COUNT=self.count,
            PADDED=size,
            OF_COLUMN_SUMS=of_column_sums,
            PARTS=self.parts,
            BLOCK=_BLOCK_OF_BASIS // size,
        )

    def _core(self) -> None:
        size = max(16, power_of_two(2 * self.count))
        launch(
            bases.core_kernel,
            (self.b,),
            self.x,
            self.wide["q"],
            self.kind["back"],
            self.kind["last"],
            self.int["bad"],
            self.counter,
            self.wide["numbers"],
            self.wide["rows"],
            self.wide["firsts"],
            self.kind["basis"],
            self.wide["delta"],
            self.kind["own"],
            self.int["finite"],
            self.tiles.blocks,
            self.tiles.blocks * self.tiles.splits,
            self.n,
            self.width,
            COUNT=self.count,
            PADDED=size,
            SKETCH=SKETCHES[self.spec.sketch],
            RETRACTION=RETRACTIONS[self.spec.retraction],
            SWEEP=self.sweep,
            SWEEP_PADDED=power_of_two(self.sweep),
            PARTS=self.parts,
            BLOCK=_BLOCK_OF_BASIS // size,
            num_warps=8 if size > 32 else 4,
        )

    def _turn(self) -> None:
        kind, tiles, count = self.kind, self.tiles, 2 * self.count
        self._pass(
            self.of_x,
            left=kind["basis"],
            left_count=count,
            left_sums=kind["sums"],
            more=kind["own"] if self.sweep else None,
        )
        launch(
            turning.turn_kernel,
            (self.b, tiles.blocks, tiles.splits),
            self.x,
            *self.of_d,
            self.wide["numbers"],
            self.int["finite"],
            kind["basis"],
            self.wide["delta"],
            kind["sums"],
            kind["own_sums"],
            kind["errors"],
            self.wide["norms"],
            kind["error_sums"],
            self.counter,
            self.skipped,
            self.n,
            self.width,
            tiles.rows_each,
            tiles.splits,
            COUNT=count,
            PADDED=padded(count),
            BY_DOT=by_dot(count),
            SWEEP=self.sweep,
            SWEEP_PADDED=padded(self.sweep),
            SWEEP_BY_DOT=by_dot(self.sweep),
            **self._rule(self.of_d),
            BM=16,
            BN=tiles.block,
        )

    def _sweep(self) -> None:
        rows = 32
        launch(
            turning.sweep_kernel,
            (self.b, -(-self.n // rows)),
            self.x,
            self.wide["numbers"],
            self.int["finite"],
            self.kind["errors"],
            self.wide["norms"],
            self.kind["error_sums"],
            self.n,
            self.width,
            self.tiles.blocks,
            SWEEP=self.sweep,
            SWEEP_PADDED=padded(self.sweep),
            SWEEP_BY_DOT=by_dot(self.sweep),
            PARTS=self.parts,
            BM=rows,
            BLOCK=_BLOCK,
        )


def _real(x: torch.Tensor) -> torch.Tensor:
    """Return the real matrices (b, n, 2p) that complex ones (b, n, p) are in memory."""
    return torch.view_as_real(x).flatten(-2) if x.is_complex() else x
