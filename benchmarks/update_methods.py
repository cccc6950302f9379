"""The methods of the update benchmark: what one step costs at least, and what ours does.

A method is built for a problem and gives an ``Update``: a function that takes one step, and one
that reads the matrix. Peers are in ``update_peers.py``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import geoopt
import torch
from torch import Tensor
from update_problem import LENGTH, Problem

from geoopt_projunn import (
    LowRankStiefel,
    LowRankUnitary,
    ProjUNNRiemannianAdam,
    ProjUNNRiemannianSGD,
    backends,
)

RANKS = (1, 4, 8, 16)
OURS = "SGD, k = 1"
"""The step that does and costs least, which others are compared with."""
DEFAULT = "SGD, k = 8"
"""The step that is taken unless a user asks for another, which they are compared with too."""
MATMUL = "n × n matrix product"
COPY = "copy"

# Passes over memory of the size of the matrix that a step makes, each a read or a write, where
# nothing of that size stays in a cache. A rank changes none: all rows share a pass.
TURN = 3
"""One product with the point, and an update of it in place; the sweep rides on both."""
TANGENT = 6 + TURN
"""Four products with the point and two with the gradient."""
LSI = 3 + TURN
"""One product with the point and two with the gradient."""
# A direction is made from gradient and state for both products with it, in place of reading it.
MOMENTUM = TANGENT + 2 + 3
"""The buffer is read twice; then gradient and buffer are read and the buffer is written."""
ADAM = TANGENT + 4 + 5
"""Both moments are read twice; then gradient and moments are read and the moments are written."""
SCALAR_ADAM = TANGENT + 2 + 3 + 1
"""As momentum, and the gradient's norm."""


def passes_of_copy(device: str) -> int:
    """Return the passes of a copy: a read, a write, and on a CPU one that no program asks for.

    A CPU reads a line of memory before it overwrites it. One that does not is taken for faster than
    it is, so that a floor may be too low but never too high.
    """
    return 3 if device == "cpu" else 2


@dataclass(frozen=True)
class Update:
    """A method ready to step; None for the matrix of a floor, which stays on no manifold."""

    step: Callable[[], object]
    weight: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Method:
    name: str
    kind: str
    """"floor", "ours" or "peer"."""
    build: Callable[[Problem], Update]
    passes: int | None = None
    """Over memory of the size of the matrix, at the least; None where nobody has counted."""
    order: int = 3
    """Its time grows as n to this power."""
    complex: bool = True
    batched: bool = True
    rectangular: bool = False
    """Whether it takes part in the table of rectangles."""
    package: str | None = None
    """What ``pip install`` needs; None for what is installed with this package."""


def methods(device: str, compile: bool = False) -> Iterator[Method]:
    """Return the floors and ours; compiled as well, and on a GPU in a CUDA graph."""
    yield Method(MATMUL, "floor", _matmul)
    yield Method(COPY, "floor", _copy, passes_of_copy(device), 2, rectangular=True)
    sgd, adam = ProjUNNRiemannianSGD, ProjUNNRiemannianAdam
    for k in RANKS:
        name = OURS if k == 1 else f"SGD, k = {k}"
        yield Method(name, "ours", _projunn(sgd, k), TANGENT, 2, rectangular=True)
    for k in RANKS:
        yield Method(f"SGD, lsi, k = {k}", "ours", _projunn(sgd, k, sketch="lsi"), LSI, 2)
    few = _projunn(sgd, 8, sketch="coordinates", sweep=0)
    yield Method("SGD, coordinates, sweep = 0, k = 8", "ours", few, order=1)
    has_kernels = ("cpu" in backends.available()) and device == "cpu"
    if has_kernels:
        for k in RANKS:
            plain = _by_torch(_projunn(sgd, k))
            yield Method(f"SGD, k = {k}, by torch's operations", "ours", plain, TANGENT, 2)
    yield Method("SGD, momentum, k = 1", "ours", _projunn(sgd, 1, momentum=0.9), MOMENTUM, 2)
    for name in ("polar", "cayley"):
        yield Method(f"SGD, {name}, k = 1", "ours", _projunn(sgd, 1, retraction=name), TANGENT, 2)
    yield Method("Adam, k = 1", "ours", _projunn(adam, 1), ADAM, 2, rectangular=True)
    scalar = _projunn(adam, 1, second_moment="scalar")
    yield Method("Adam, scalar, k = 1", "ours", scalar, SCALAR_ADAM, 2)
    if compile:
        faster = {f"SGD, k = {k}": (_projunn(sgd, k, compile=True), TANGENT) for k in RANKS}
        faster["SGD, lsi, k = 1"] = _projunn(sgd, 1, sketch="lsi", compile=True), LSI
        faster["Adam, k = 1"] = _projunn(adam, 1, compile=True), ADAM
        for name, (fast, passes) in faster.items():
            # What the kernels take is not compiled.
            name, fast = f"{name}, compiled", _by_torch(fast) if has_kernels else fast
            yield Method(name, "ours", fast, passes, 2, complex=False)
    if device == "cuda":
        for k in RANKS:
            captured = _captured(_projunn(sgd, k))
            yield Method(f"SGD, k = {k}, in a CUDA graph", "ours", captured, TANGENT, 2)


def optimizer_for(
    tensors: list[Tensor],
    grads: list[Tensor],
    kind: type[torch.optim.Optimizer],
    k: int,
    *,
    second_moment: str = "elementwise",
    momentum: float = 0.0,
    compile: bool = False,
    **manifold: Any,
) -> torch.optim.Optimizer:
    """Return an optimizer of this package over copies of some points, gradients set."""
    parameters = []
    for x, d in zip(tensors, grads, strict=True):
        kind_of_points = LowRankUnitary if x.shape[-1] == x.shape[-2] else LowRankStiefel
        p = geoopt.ManifoldParameter(x.clone(), manifold=kind_of_points(k, **manifold))
        p.grad = d.clone()
        parameters.append(p)
    if kind is ProjUNNRiemannianSGD:
        return kind(parameters, lr=LENGTH, momentum=momentum, compile=compile)
    # An elementwise direction of Adam has entries of size one.
    lr = LENGTH if second_moment == "scalar" else LENGTH / tensors[0].shape[-1]
    return kind(parameters, lr=lr, second_moment=second_moment, compile=compile)


def _projunn(
    kind: type[torch.optim.Optimizer], k: int, **options: Any
) -> Callable[[Problem], Update]:
    def build(problem: Problem) -> Update:
        optimizer = optimizer_for([problem.x], [problem.d], kind, k, **options)
        (p,) = optimizer.param_groups[0]["params"]
        return Update(optimizer.step, lambda: p.detach().as_subclass(Tensor))

    return build


def _by_torch(build: Callable[[Problem], Update]) -> Callable[[Problem], Update]:
    def built(problem: Problem) -> Update:
        update = build(problem)

        def step() -> None:
            with backends.use("reference"):
                update.step()

        return Update(step, update.weight)

    return built


def _captured(build: Callable[[Problem], Update]) -> Callable[[Problem], Update]:
    def captured(problem: Problem) -> Update:
        update = build(problem)
        # On a stream of its own, as torch's notes on graphs ask for.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                update.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            update.step()

        def replay(kept: Update = update) -> None:
            # The graph works on the optimizer's state, which lives as long as this.
            graph.replay()

        return Update(replay, update.weight)

    return captured


def _matmul(problem: Problem) -> Update:
    out = torch.empty_like(problem.x)
    return Update(lambda: torch.matmul(problem.x, problem.d, out=out))


def _copy(problem: Problem) -> Update:
    target = problem.x.clone()
    return Update(lambda: target.copy_(problem.d), lambda: target)
