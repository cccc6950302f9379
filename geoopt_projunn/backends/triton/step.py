"""A step, and its launches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...normalization import furthest, noise_floor
from ..spec import Buffers, NativeRule, StepSpec
from .direction import Direction
from .kernels import cores, directions, normalization, retractions, turning
from .launching import BM, bits, by_dot, padded, power_of_two, rows_of_tile, stages, warps
from .programs import Number, run
from .sketching import SketchLaunches

_SKETCHES = {"tangent": cores.TANGENT, "lsi": cores.LSI}
_RETRACTIONS = {
    "exponential": retractions.EXPONENTIAL,
    "cayley": retractions.CAYLEY,
    "polar": retractions.POLAR,
}
_NORMALIZATIONS = {"angle": normalization.ANGLE, "spectral": normalization.SPECTRAL}
# Of a program that sweeps: rows, and norms that it adds up at once.
_ROWS = 32
_BLOCK = 256


class Step(SketchLaunches):
    """One step of a batch of matrices in place: with what is sketched it turns and sweeps."""

    def take(self) -> None:
        """Launch all of it."""
        if self.spec.sketch == "tangent":
            self.tangent()
        else:
            self.lsi()
        self._core()
        self._turn()
        if self.sizes.sweep:
            self._sweep()
        self.end()

    def _core(self) -> None:
        name, sizes, share, memory64 = (
            self.spec.normalize,
            self.sizes,
            self.sizes.core,
            self.memory64,
        )
        alike = {
            "COUNT": sizes.count,
            "PADDED": padded(2 * sizes.count),
            "SKETCH": _SKETCHES[self.spec.sketch],
            "PARTS": sizes.parts,
            "BLOCK": share.block,
            "num_warps": warps(padded(2 * sizes.count)),
        }
        self.launch(
            cores.collect_kernel,
            (sizes.b, share.programs),
            self.x,
            memory64["q"],
            self.memory["back"],
            self.memory["last"],
            self.counter,
            memory64["numbers"],
            self.flags["tickets"],
            memory64["again"],
            memory64["rows"],
            memory64["gram"],
            memory64["largest"],
            memory64["by"],
            self.memory["own"],
            share.each,
            sizes.tiles.blocks,
            sizes.n,
            sizes.width,
            OF_BASIS=padded(sizes.count),
            SWEEP=sizes.sweep,
            SWEEP_PADDED=power_of_two(sizes.sweep),
            **alike,
        )
        self.launch(
            cores.core_kernel,
            (sizes.b, share.programs),
            self.flags["bad"],
            memory64["numbers"],
            self.flags["tickets"],
            memory64["rows"],
            memory64["by"],
            memory64["gram"],
            memory64["products"],
            self.memory["basis"],
            memory64["delta"],
            self.flags["finite"],
            bits(0.0 if name is None else noise_floor(self.x)),
            share.each,
            sizes.tiles.blocks * sizes.tiles.splits,
            sizes.n,
            NORMALIZE=normalization.AS_LONG if name is None else _NORMALIZATIONS[name],
            IS_LIMITED=self.is_limited,
            RETRACTION=_RETRACTIONS[self.spec.retraction],
            RULE=self.rule.rule,
            **alike,
        )

    def _turn(self) -> None:
        memory, tiles, count = self.memory, self.sizes.tiles, 2 * self.sizes.count
        options = self.options(self.of_d)
        is_gradient = options["RULE"] == directions.GRADIENT
        rows = BM
        if by_dot(count) or tiles.is_small:
            rows = rows_of_tile(tiles, self.x.dtype, by_dot=by_dot(count), is_gradient=is_gradient)
        self.pass_over(
            self.of_x,
            left=memory["basis"],
            left_count=count,
            left_sums=memory["turned_sums"],
            more=memory["own"] if self.sizes.sweep else None,
        )
        self.launch(
            turning.turn_kernel,
            (self.sizes.b, tiles.blocks, tiles.splits),
            self.x,
            *self.of_d,
            self.memory64["numbers"],
            self.flags["finite"],
            memory["basis"],
            self.memory64["delta"],
            memory["turned_sums"],
            memory["own_sums"],
            memory["errors"],
            self.memory64["norms"],
            memory["error_sums"],
            self.counter,
            self.skipped,
            self.sizes.n,
            self.sizes.width,
            tiles.rows_each,
            tiles.splits,
            COUNT=count,
            PADDED=padded(count),
            BY_DOT=by_dot(count),
            SWEEP=self.sizes.sweep,
            SWEEP_PADDED=padded(self.sizes.sweep),
            SWEEP_BY_DOT=by_dot(self.sizes.sweep),
            **options,
            BM=rows,
            BN=tiles.block,
            STAGES=stages(tiles, tiles.rows_each, self.x.dtype, is_gradient=is_gradient),
        )

    def _sweep(self) -> None:
        rows = power_of_two(self.sizes.n) if self.sizes.tiles.is_small else _ROWS
        self.launch(
            turning.sweep_kernel,
            (self.sizes.b * -(-self.sizes.n // rows),),
            self.x,
            self.memory64["numbers"],
            self.flags["finite"],
            self.memory["errors"],
            self.memory64["norms"],
            self.memory["error_sums"],
            self.sizes.n,
            self.sizes.width,
            self.sizes.tiles.blocks,
            SWEEP=self.sizes.sweep,
            SWEEP_PADDED=padded(self.sizes.sweep),
            SWEEP_BY_DOT=by_dot(self.sizes.sweep),
            PARTS=self.sizes.parts,
            BM=rows,
            BLOCK=_BLOCK,
        )


def take(
    x: torch.Tensor,
    grad: torch.Tensor,
    buffers: Buffers,
    native: NativeRule,
    spec: StepSpec,
    group: Mapping[str, Any],
) -> None:
    """Step the matrices of one tensor, (*, n, p), in place; all that is given is contiguous."""
    # Radians are radians, whatever the size of a generator.
    scale = spec.scale if spec.normalize is None else 1.0
    unit, rate = (scale if group["maximize"] else -scale), group["lr"]
    # On a GPU; one on the host is a number.
    is_on_device = isinstance(rate, torch.Tensor) and rate.device == x.device
    length, factor = (unit, rate) if is_on_device else (unit * float(rate), None)
    d = Direction.of(grad, buffers, native)
    is_limited = is_on_device or _may_stop(length, x, spec)
    counters = buffers["step"], buffers["skipped"]

    def launch_all(numbers: Sequence[Number]) -> None:
        # The same memory as batches; what is replayed needs addresses alone.
        lead = x.dim() - 2
        point, counter, skipped, *tensors = (
            t.detach().flatten(0, lead - 1) if lead else t.detach()[None]
            for t in (x, *counters, *d.tensors)
        )
        own, *of_rule = numbers
        follow = d._replace(tensors=tuple(tensors), numbers=tuple(of_rule))
        Step(point, follow, counter, skipped, own, factor, spec, is_limited=is_limited).take()

    inputs = [x, grad, *counters, *[buffers[name] for name in native.state]]
    if factor is not None:
        inputs.append(factor)
    key = x.shape, spec, d.rule.value, d.has_most, is_on_device, is_limited
    run(key, inputs, (length, *d.numbers), launch_all)


def _may_stop(length: float, x: torch.Tensor, spec: StepSpec) -> bool:
    """Return whether a plane might turn further than half a turn."""
    if spec.normalize is None:
        return False
    assert spec.k is not None
    return furthest(length, 2 * spec.k if x.is_complex() else spec.k, spec.normalize) > math.pi
