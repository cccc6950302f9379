"""Ways to train one matrix or a batch of them: ours, the paper's, and what others offer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

import geoopt
import torch
from torch.nn.utils import parametrizations

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD

# The methods of a family are compared with each other, and have one grid of learning rates.
GRIDS = {
    "sgd": (0.1, 0.18, 0.3, 0.55, 1.0, 1.8, 3.0),
    "momentum": (0.018, 0.03, 0.055, 0.1, 0.18, 0.3, 0.55),
    "adam": (5.5e-3, 1e-2, 1.8e-2, 3e-2, 5.5e-2, 0.1, 0.18),
    "adam, scalar": (0.3, 0.55, 1.0, 1.8, 3.0, 5.5, 10.0),
}
RANKS = (1, 4, 16)

Trained = tuple[Callable[[], torch.Tensor], torch.optim.Optimizer]
Make = Callable[[torch.Tensor, float], Trained]


@dataclass(frozen=True)
class Method:
    """A way to train matrices of shape (b, n, n) from a start, with a learning rate."""

    family: str
    variant: str
    make: Make
    takes_complex: bool = True

    @property
    def name(self) -> str:
        return f"{self.family}: {self.variant}"


def on_manifold(
    manifold: geoopt.Manifold, optimizer: Callable[..., torch.optim.Optimizer], **options: object
) -> Make:
    """Make a ManifoldParameter and its optimizer."""

    def make(start: torch.Tensor, lr: float) -> Trained:
        weight = geoopt.ManifoldParameter(start.clone(), manifold=manifold)
        return lambda: weight, optimizer([weight], lr=lr, **options)

    return make


def parametrized(orthogonal_map: str, optimizer: Callable[..., torch.optim.Optimizer]) -> Make:
    """Make torch's orthogonal parametrization and an optimizer of its raw weight."""

    def make(start: torch.Tensor, lr: float) -> Trained:
        holder = torch.nn.Module()
        holder.weight = torch.nn.Parameter(start.clone())
        parametrizations.orthogonal(holder, orthogonal_map=orthogonal_map)
        holder.weight = start.clone()
        return lambda: holder.weight, optimizer(holder.parameters(), lr=lr)

    return make


def methods() -> Iterator[Method]:
    """Yield all methods, family by family."""
    sgd, adam = ProjUNNRiemannianSGD, ProjUNNRiemannianAdam
    nesterov = {"momentum": 0.9, "nesterov": True}
    elementwise = {"second_moment": "elementwise"}
    full, stiefel = LowRankUnitary(None), geoopt.EuclideanStiefel()

    for sketch, k in product(("tangent", "lsi", "column"), RANKS):
        manifold, variant = LowRankUnitary(k, sketch=sketch), f"{sketch}, k = {k}"
        yield Method("sgd", variant, on_manifold(manifold, sgd))
        yield Method("momentum", f"nesterov, {variant}", on_manifold(manifold, sgd, **nesterov))
        yield Method("adam", variant, on_manifold(manifold, adam, **elementwise))
    for k, feedback in product((1, 4), (None, 0.0, 0.99)):
        variant = "heavy ball" if feedback is None else f"feedback {feedback:g}"
        options = {"momentum": 0.9, "error_feedback": feedback}
        make = on_manifold(LowRankUnitary(k), sgd, **options)
        yield Method("momentum", f"{variant}, tangent, k = {k}", make)
    for k in (*RANKS, None):
        make = on_manifold(LowRankUnitary(k), adam, second_moment="scalar")
        yield Method("adam, scalar", f"tangent, k = {k}" if k else "full rank", make)

    yield Method("sgd", "full rank", on_manifold(full, sgd))
    yield Method("momentum", "heavy ball, full rank", on_manifold(full, sgd, momentum=0.9))
    yield Method("momentum", "nesterov, full rank", on_manifold(full, sgd, **nesterov))
    yield Method("adam", "full rank", on_manifold(full, adam, **elementwise))
    theirs = geoopt.optim.RiemannianSGD, geoopt.optim.RiemannianAdam
    yield Method("sgd", "geoopt Stiefel", on_manifold(stiefel, theirs[0]), False)
    yield Method("adam, scalar", "geoopt Stiefel", on_manifold(stiefel, theirs[1]), False)
    exponential = parametrized("matrix_exp", torch.optim.Adam)
    yield Method("adam", "torch parametrization", exponential, False)
