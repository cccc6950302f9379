"""Every kind of LowRankUnitary, bare and scaled."""

from typing import NamedTuple

import geoopt
import torch

from geoopt_projunn import LowRankUnitary
from tests._matrices import DTYPES, RETRACTIONS, SKETCHES, tangent_at, unitary

N = 7
BATCH = (2, 3)


class Case(NamedTuple):
    retraction: str
    sketch: str
    k: int | None
    dtype: torch.dtype
    scale: float | None

    @property
    def manifold(self):
        bare = LowRankUnitary(self.k, retraction=self.retraction, sketch=self.sketch)
        return bare if self.scale is None else geoopt.Scaled(bare, self.scale)

    def rank(self):
        """The highest (even) rank of a step that is followed exactly."""
        return None if self.k is None else 2 * self.k

    def unscaled(self, u):
        return u / (self.scale or 1.0)

    def point(self, *batch):
        return unitary(*batch, N, N, dtype=self.dtype)

    def step(self, x, norm=1.0):
        return tangent_at(x, rank=self.rank(), norm=norm)

    def __str__(self):
        kind = str(self.dtype).removeprefix("torch.")
        scaled = "-scaled" if self.scale else ""
        return f"{self.retraction}-{self.sketch}-k={self.k}-{kind}{scaled}"


CASES = [
    Case(retraction, sketch, k, dtype, scale)
    for retraction in RETRACTIONS
    for sketch in SKETCHES
    for k in (1, 2, None)
    for dtype in DTYPES
    for scale in (None, 2.0)
    # The paper's sketches matter to egrad2rgrad only: one retraction will do.
    if sketch == "tangent" or (retraction == "polar" and k == 1)
    if scale is None or dtype in (torch.float32, torch.complex128)
]
