"""The launches of a step."""

from ...normalization import noise_floor
from .kernels import bases, directions, normalization, retractions, turning
from .launching import bits, by_dot, launch, padded, power_of_two
from .sketching import BLOCK, BLOCK_OF_BASIS, BM, MANY_WARPS, SketchLaunches

_SKETCHES = {"tangent": bases.TANGENT, "lsi": bases.LSI}
_RETRACTIONS = {
    "exponential": retractions.EXPONENTIAL,
    "cayley": retractions.CAYLEY,
    "polar": retractions.POLAR,
}
_NORMALIZATIONS = {"angle": normalization.ANGLE, "spectral": normalization.SPECTRAL}
# Of a program that sweeps.
_ROWS = 32


class Step(SketchLaunches):
    """One step of a batch of matrices in place: with what is sketched it turns and sweeps."""

    def take(self) -> None:
        """Launch all of it."""
        if self.rule.rule == directions.ADAM_SCALAR:
            self.square()
        if self.spec.sketch == "tangent":
            self.tangent()
        else:
            self.lsi()
        self._core()
        self._turn()
        if self.sizes.sweep:
            self._sweep()

    def _core(self) -> None:
        name = self.spec.normalize
        size = max(16, power_of_two(2 * self.sizes.count))
        launch(
            bases.core_kernel,
            (self.sizes.b,),
            self.x,
            self.wide["q"],
            self.kind["back"],
            self.kind["last"],
            self.flags["bad"],
            self.counter,
            self.wide["numbers"],
            self.wide["rows"],
            self.wide["firsts"],
            self.kind["basis"],
            self.wide["delta"],
            self.kind["own"],
            self.flags["finite"],
            bits(0.0 if name is None else noise_floor(self.x)),
            self.sizes.tiles.blocks,
            self.sizes.tiles.blocks * self.sizes.tiles.splits,
            self.sizes.n,
            self.sizes.width,
            COUNT=self.sizes.count,
            PADDED=size,
            SKETCH=_SKETCHES[self.spec.sketch],
            NORMALIZE=normalization.AS_LONG if name is None else _NORMALIZATIONS[name],
            IS_LIMITED=self.is_limited,
            RETRACTION=_RETRACTIONS[self.spec.retraction],
            SWEEP=self.sizes.sweep,
            SWEEP_PADDED=power_of_two(self.sizes.sweep),
            PARTS=self.sizes.parts,
            BLOCK=BLOCK_OF_BASIS // size,
            num_warps=MANY_WARPS,
        )

    def _turn(self) -> None:
        kind, tiles, count = self.kind, self.sizes.tiles, 2 * self.sizes.count
        self.pass_over(
            self.of_x,
            left=kind["basis"],
            left_count=count,
            left_sums=kind["sums"],
            more=kind["own"] if self.sizes.sweep else None,
        )
        launch(
            turning.turn_kernel,
            (self.sizes.b, tiles.blocks, tiles.splits),
            self.x,
            *self.of_d,
            self.wide["numbers"],
            self.flags["finite"],
            kind["basis"],
            self.wide["delta"],
            kind["sums"],
            kind["own_sums"],
            kind["errors"],
            self.wide["norms"],
            kind["error_sums"],
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
            **self.options(self.of_d),
            BM=BM,
            BN=tiles.block,
        )

    def _sweep(self) -> None:
        launch(
            turning.sweep_kernel,
            (self.sizes.b, -(-self.sizes.n // _ROWS)),
            self.x,
            self.wide["numbers"],
            self.flags["finite"],
            self.kind["errors"],
            self.wide["norms"],
            self.kind["error_sums"],
            self.sizes.n,
            self.sizes.width,
            self.sizes.tiles.blocks,
            SWEEP=self.sizes.sweep,
            SWEEP_PADDED=padded(self.sizes.sweep),
            SWEEP_BY_DOT=by_dot(self.sizes.sweep),
            PARTS=self.sizes.parts,
            BM=_ROWS,
            BLOCK=BLOCK,
        )
