"""What time_to_loss.py compares: methods, problems, learning rates."""

import importlib.util
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import geoopt
import torch
from methods import Make, Method, Trained, on_manifold, parametrized
from problems import Problem, procrustes, regression

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.normalization import planned_angle

HAS_POGO = importlib.util.find_spec("pogo") is not None
RANKS = (1, 4, 8, 16, 32)
# Wide, for the same gradient moves the parametrization twice and geoopt's CanonicalStiefel four
# times as far as the others.
RATES = (0.055, 0.1, 0.18, 0.3, 0.55, 1.0, 1.8, 3.0)
RADIANS = "radians"
# Their rate is a number of steps, in which the angle falls from that of the formula to zero.
PLANS = (50.0, 100.0, 200.0, 400.0, 800.0)
MINI_BATCH = "regression"
# Gradients are means over the samples: (W - Q) X Xᵀ / batch for the regressions.
PROBLEMS: dict[str, Callable[[torch.Generator, int, int], Problem]] = {
    MINI_BATCH: lambda g, n, batch: regression(g, n, label_noise=0.0, batch=batch),
    "regression, batch n": lambda g, n, _: regression(g, n, label_noise=0.0, batch=n),
    "Procrustes, consistent": lambda g, n, _: procrustes(g, n, noise=0.0, samples=2 * n),
    "Procrustes, large residual": lambda g, n, _: procrustes(g, n, noise=2.0, samples=2 * n),
}


@dataclass(frozen=True)
class Task:
    """One method on one problem at one learning rate."""

    problem: str
    n: int
    batch: int
    seed: int
    method: Method
    lr: float

    @property
    def label(self) -> str:
        """The problem, with its batch where that is an option."""
        return f"{self.problem}, batch {self.batch}" if self.problem == MINI_BATCH else self.problem

    def path(self, folder: Path) -> Path:
        words = f"{self.method.name}_{self.label}_n{self.n}_lr{self.lr:g}_seed{self.seed}"
        return folder / (re.sub(r"[^\w.]+", "-", words) + ".json")


@lru_cache(maxsize=1)
def drawn(name: str, n: int, batch: int, seed: int) -> tuple[Problem, torch.Generator, object]:
    """Draw a problem; with the generator of its batches, and the state that they start from."""
    generator = torch.Generator().manual_seed(seed)
    problem = PROBLEMS[name](generator, n, batch)
    return problem, generator, generator.get_state()


def rates(method: Method, others: Sequence[float]) -> Sequence[float]:
    """Return the grid of a method."""
    return PLANS if method.variant.startswith(RADIANS) else others


class Falling:
    """An optimizer whose rate falls to zero in some steps, and its schedule."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        self.zero_grad, self._optimizer = optimizer.zero_grad, optimizer
        self._schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)

    def step(self) -> None:
        self._optimizer.step()
        self._schedule.step()


def in_radians(k: int) -> Make:
    """Make what the documentation recommends, for a planned number of steps."""

    def make(start: torch.Tensor, plan: float) -> Trained:
        weight = geoopt.ManifoldParameter(start.clone(), manifold=LowRankUnitary(k))
        options = {"normalize": "angle", "momentum": 0.9, "nesterov": True}
        angle = planned_angle(*start.shape[-2:], k, plan)
        optimizer = ProjUNNRiemannianSGD([weight], lr=angle, **options)
        return lambda: weight, Falling(optimizer, int(plan))

    return make


def methods(n: int) -> Iterator[Method]:
    """Yield ours, of ranks that n allows and of full rank, and the peers that are installed."""
    for k in RANKS:
        if k <= n // 2:
            yield Method("ours", f"k = {k}", on_manifold(LowRankUnitary(k), ProjUNNRiemannianSGD))
            yield Method("ours", f"{RADIANS}, k = {k}", in_radians(k))
    nesterov = {"momentum": 0.9, "nesterov": True}
    full_rank = LowRankUnitary(None)
    yield Method("ours", "full rank", on_manifold(full_rank, ProjUNNRiemannianSGD))
    with_momentum = on_manifold(full_rank, ProjUNNRiemannianSGD, **nesterov)
    yield Method("ours", "full rank, Nesterov", with_momentum)
    if n >= 32:
        with_momentum = on_manifold(LowRankUnitary(16), ProjUNNRiemannianSGD, **nesterov)
        yield Method("ours", "k = 16, Nesterov", with_momentum)
        lsi = LowRankUnitary(16, sketch="lsi")
        yield Method("ours", "k = 16, lsi", on_manifold(lsi, ProjUNNRiemannianSGD))
    for manifold in (geoopt.EuclideanStiefel(), geoopt.CanonicalStiefel()):
        make = on_manifold(manifold, geoopt.optim.RiemannianSGD)
        yield Method("peer", f"geoopt {type(manifold).__name__}", make)
    yield Method("peer", "torch orthogonal, cayley", parametrized("cayley", torch.optim.SGD))
    if not HAS_POGO:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it compiles something with what torch deprecates
        from pogo import POGO, base

    def make_pogo(start: torch.Tensor, lr: float) -> Trained:
        weight = torch.nn.Parameter(start.clone())
        return lambda: weight, POGO([weight], base.SGD(), lr)

    yield Method("peer", "POGO", make_pogo)
