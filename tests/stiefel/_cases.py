"""Every kind of LowRankStiefel, and the canonical metric by dense matrices."""

from typing import NamedTuple

import geoopt
import torch

from geoopt_projunn import LowRankStiefel
from tests._asserts import assert_within
from tests._matrices import RETRACTIONS, SKETCHES, eps, skew, skewh, wide

BATCH = (2, 3)


class Case(NamedTuple):
    shape: tuple[int, int]
    blocks: int
    k: int | None
    dtype: torch.dtype
    retraction: str = "exponential"
    sketch: str = "tangent"
    scale: float | None = None

    @property
    def manifold(self):
        options = {"retraction": self.retraction, "sketch": self.sketch, "blocks": self.blocks}
        bare = LowRankStiefel(self.k, **options)
        return bare if self.scale is None else geoopt.Scaled(bare, self.scale)

    def tall(self, x):
        """Blocks as a batch, wide ones transposed."""
        x = x.unflatten(-2, (self.blocks, -1))
        return x.mT if x.shape[-2] < x.shape[-1] else x

    def back(self, x, like):
        x = x.mT if like.shape[-2] // self.blocks < like.shape[-1] else x
        return x.flatten(-3, -2)

    def any(self, *batch):
        return torch.randn(*batch, *self.shape, dtype=self.dtype)

    def point(self, *batch):
        a = self.any(*batch)
        u, _, vh = torch.linalg.svd(self.tall(a).to(wide(self.dtype)), full_matrices=False)
        return self.back(u @ vh, a).to(self.dtype)

    def tangent(self, x, rank=None, norm=1.0):
        """Tangent to each block, of a rank there, of a length in the canonical metric."""
        y = self.tall(x).to(wide(self.dtype))
        n = y.shape[-2]
        rotation = skew(*y.shape[:-2], n, n, rank=rank, dtype=y.dtype)
        u = self.back(rotation @ y, x)
        length = canonical(self, x, u, u).sqrt()
        return (norm * u / length[..., None, None]).to(self.dtype)

    def moved(self, x, u, rotate):
        """Rotate the blocks of x by a function of the generators of u, in float64."""
        y, v = (self.tall(t).to(wide(self.dtype)) for t in (x, u))
        return self.back(rotate(tangent_generator(y, v)) @ y, x)

    def rank(self):
        return None if self.k is None else 2 * self.k

    def __str__(self):
        kind = str(self.dtype).removeprefix("torch.")
        parts = [*self.shape, f"blocks={self.blocks}", f"k={self.k}", kind, self.retraction]
        return "-".join(map(str, [*parts, self.sketch, *(["scaled"] if self.scale else [])]))


def tangent_generator(y, v):
    """The skew-Hermitian matrix with Ωy = v that vanishes off y, for tangent v."""
    return v @ y.mH - y @ v.mH - y @ skewh(y.mH @ v) @ y.mH


def canonical(case, x, u, v):
    """The metric of Edelman, Arias and Smith, (2.39), summed over the blocks."""
    y, u, v = (case.tall(t).to(wide(case.dtype)) for t in (x, u, v))
    eye = torch.eye(y.shape[-2], dtype=y.dtype)
    return (u.conj() * ((eye - y @ y.mH / 2) @ v)).real.sum((-3, -2, -1))


SHAPES = [((9, 4), 1), ((4, 9), 1), ((6, 6), 1), ((14, 3), 2), ((6, 8), 2)]

CASES = [
    *(
        Case(shape, blocks, k, dtype)
        for shape, blocks in SHAPES
        for k in (1, None)
        for dtype in (torch.float32, torch.complex128)
    ),
    *(Case((11, 5), 1, 2, torch.float64, retraction) for retraction in RETRACTIONS),
    *(Case((5, 11), 1, 2, torch.complex64, sketch=sketch) for sketch in SKETCHES),
    Case((9, 4), 1, 2, torch.float64, scale=2.0),
    Case((5, 1), 1, 1, torch.float64),
]


def check(case, x, u, ulps=20.0):
    """u is tangent at x to some units of rounding of its largest entry."""
    product = case.tall(x).mH @ case.tall(u)
    scale = max(eps(u.dtype), u.abs().max().item())
    assert_within(product, -product.mH, ulps * eps(u.dtype) * scale)
    assert case.manifold.check_vector_on_tangent(x, u)


METHODS = {
    "projx": lambda m, x, y, u, v: m.projx(x + 0.1 * u),
    "proju": lambda m, x, y, u, v: m.proju(x, u),
    "egrad2rgrad": lambda m, x, y, u, v: m.egrad2rgrad(x, u),
    "retr": lambda m, x, y, u, v: m.retr(x, u),
    "expmap": lambda m, x, y, u, v: m.expmap(x, u),
    "transp": lambda m, x, y, u, v: m.transp(x, y, v),
    "retr_transp": lambda m, x, y, u, v: torch.cat(m.retr_transp(x, u, v), -1),
    "inner": lambda m, x, y, u, v: m.inner(x, u, v, keepdim=True),
    "component_inner": lambda m, x, y, u, v: m.component_inner(x, u, v),
}
