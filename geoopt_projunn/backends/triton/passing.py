"""The memory of a step, and its passes over the matrices."""

from typing import Any

import torch

from ...linalg.rows import as_real
from ..spec import StepSpec
from .direction import Direction
from .kernels import directions, passes
from .launching import MANY_WARPS, by_dot, launch, padded, registers, rows_of_tile, stages, warps
from .programs import Number
from .sizes import Sizes
from .support import overlaps
from .whole_steps import Part, as_one


class Passes:
    """What a step reads, and where it writes what it finds.

    Parameters
    ----------
    x : torch.Tensor
        points
    d : Direction
        what to follow
    counter, skipped : torch.Tensor
        (b,), the number of the step and the steps that were skipped
    length : Number
        of the step along the direction, of a unit of the learning rate if there is a ``rate``
    rate : torch.Tensor, optional
        learning rate, of one number on the device
    spec : StepSpec
        rank, sketch, retraction and drift control
    is_limited : bool
        whether a plane might turn further than half a turn
    """

    def __init__(
        self,
        x: torch.Tensor,
        d: Direction,
        counter: torch.Tensor,
        skipped: torch.Tensor,
        length: Number,
        rate: torch.Tensor | None,
        spec: StepSpec,
        *,
        is_limited: bool,
    ) -> None:
        self.spec, self.rule, self.sizes = spec, d, Sizes.of(x, spec)
        self.x, self.of_d = as_real(x), tuple(map(as_real, d.tensors))
        self.of_x = (self.x,) * 4
        self.counter, self.skipped, self.length, self.rate = counter, skipped, length, rate
        self.is_limited = is_limited
        self.memory = self.sizes.memory(self.x.dtype, x.device)
        self.memory64 = self.sizes.wide_memory(x.device)
        self.flags = self.sizes.flags(x.device)
        self._has_begun = False
        self._parts: list[Part] = []
        tiles = self.sizes.tiles
        self.overlaps = overlaps(x.device, self.sizes.b * tiles.blocks * tiles.splits)

    def launch(self, kernel: Any, grid: tuple[int, ...], *args: Any, **options: Any) -> None:
        """Launch a kernel of the step, or note that it is to be a part of the only one.

        The first one waits for all kernels of others.
        """
        is_alone = self.sizes.tiles.is_small
        if "IS_ALONE" in kernel.arg_names:
            options["IS_ALONE"] = is_alone
        if is_alone:
            # All parts have the warps of the whole.
            options.pop("num_warps", None)
            self._parts.append(Part(kernel, args, {**options, "OVERLAPS": False}))
            return
        early, self._has_begun = self.overlaps and self._has_begun, True
        launch(kernel, grid, *args, starts_early=early, OVERLAPS=self.overlaps, **options)

    def end(self) -> None:
        """Launch the parts that were noted as one kernel; before this nothing of them runs."""
        if self._parts:
            kernel, args = as_one(self._parts)
            rows = padded(2 * self.sizes.count)
            launch(kernel, (self.sizes.b,), *args, num_warps=warps(rows), **registers(rows))

    def options(self, source: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        """Return what kernels are told of a matrix to read: it may be what a rule makes."""
        is_gradient = source is self.of_x
        return {
            "RULE": directions.GRADIENT if is_gradient else self.rule.rule,
            "HAS_MOST": self.rule.has_most and not is_gradient,
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
        tiles, unused, options = self.sizes.tiles, self.x, self.options(source)
        counts = {
            "LEFT": 0 if left is None else left_count or self.sizes.count,
            "MORE": 0 if more is None else self.sizes.sweep,
            "RIGHT": 0 if right is None else self.sizes.count,
        }
        is_short = not any(map(by_dot, counts.values()))
        is_gradient = options["RULE"] == directions.GRADIENT
        is_wide = min(counts["LEFT"], counts["RIGHT"]) > 0 and by_dot(self.sizes.count)
        self.launch(
            passes.pass_kernel,
            (self.sizes.b, tiles.blocks, tiles.splits),
            *source,
            self.memory64["numbers"],
            *(unused if t is None else t for t in (left, more, right, left_sums)),
            self.memory["own_sums"],
            unused if right_sums is None else right_sums,
            self.flags["bad"],
            self.memory64["squares"],
            self.sizes.n,
            self.sizes.width,
            tiles.rows_each,
            partial,
            **counts,
            **{f"{name}_PADDED": padded(count) for name, count in counts.items()},
            **{f"{name}_BY_DOT": by_dot(count) for name, count in counts.items()},
            IS_CHECKED=is_checked,
            **options,
            BM=rows_of_tile(tiles, self.x.dtype, by_dot=not is_short, is_gradient=is_gradient),
            BN=tiles.block,
            STAGES=stages(
                tiles,
                tiles.rows_each,
                self.x.dtype,
                # In float64 there is no room for three tiles of all that Adam reads.
                is_gradient=is_gradient or self.x.dtype == torch.float32,
            ),
            num_warps=MANY_WARPS if is_wide else 4,
        )
