"""The methods of the update benchmark: what one step costs at least, and what ours does.

A method is built for a problem and gives an ``Update``: a function that takes one step, and one
that reads the matrix. Peers are in ``update_peers.py``.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import geoopt
import torch
from timing import timed
from torch import Tensor
from update_problem import LENGTH, Problem

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, backends

RANKS = (1, 4, 16)
OURS = "SGD, k = 1"
"""The default of this package, which others are compared with."""
MATMUL = "n × n matrix product"
FLOOR = "streaming floor, k = {}"


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
    k: int = 1
    order: int = 3
    """Its time grows as n to this power."""
    complex: bool = True
    batched: bool = True
    package: str | None = None
    """What ``pip install`` needs; None for what is installed with this package."""


def methods(device: str, compile: bool = False) -> Iterator[Method]:
    """Return the floors and ours; compiled as well, and on a GPU in a CUDA graph."""
    yield Method(MATMUL, "floor", _matmul)
    for k in RANKS:
        yield Method(FLOOR.format(k), "floor", _streaming(k), k, 2)
    sgd, adam = ProjUNNRiemannianSGD, ProjUNNRiemannianAdam
    for k in RANKS:
        yield Method(OURS if k == 1 else f"SGD, k = {k}", "ours", _projunn(sgd, k), k, 2)
    for k in RANKS:
        yield Method(f"SGD, lsi, k = {k}", "ours", _projunn(sgd, k, sketch="lsi"), k, 2)
    has_kernels = ("cpu" in backends.available()) and device == "cpu"
    if has_kernels:
        for k in RANKS:
            plain = _by_torch(_projunn(sgd, k))
            yield Method(f"SGD, k = {k}, by torch's operations", "ours", plain, k, 2)
    yield Method("SGD, momentum, k = 1", "ours", _projunn(sgd, 1, momentum=0.9), 1, 2)
    for name in ("polar", "cayley"):
        yield Method(f"SGD, {name}, k = 1", "ours", _projunn(sgd, 1, retraction=name), 1, 2)
    yield Method("Adam, k = 1", "ours", _projunn(adam, 1), 1, 2)
    scalar = _projunn(adam, 1, second_moment="scalar")
    yield Method("Adam, scalar, k = 1", "ours", scalar, 1, 2)
    if compile:
        faster = {f"SGD, k = {k}": _projunn(sgd, k, compile=True) for k in RANKS}
        faster["SGD, lsi, k = 1"] = _projunn(sgd, 1, sketch="lsi", compile=True)
        faster["Adam, k = 1"] = _projunn(adam, 1, compile=True)
        for name, fast in faster.items():
            k = int(name.rpartition(" ")[2])
            # What the kernels take is not compiled.
            name, fast = f"{name}, compiled", _by_torch(fast) if has_kernels else fast
            yield Method(name, "ours", fast, k, 2, complex=False)
    if device == "cuda":
        for k in RANKS:
            captured = _captured(_projunn(sgd, k))
            yield Method(f"SGD, k = {k}, in a CUDA graph", "ours", captured, k, 2)


def optimizer_for(
    tensors: list[Tensor],
    grads: list[Tensor],
    kind: type[torch.optim.Optimizer],
    k: int,
    *,
    second_moment: str = "elementwise",
    momentum: float = 0.0,
    compile: bool = False,
    **manifold: str,
) -> torch.optim.Optimizer:
    """Return an optimizer of this package over copies of some points, gradients set."""
    parameters = []
    for x, d in zip(tensors, grads, strict=True):
        p = geoopt.ManifoldParameter(x.clone(), manifold=LowRankUnitary(k, **manifold))
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


def _streaming(k: int) -> Callable[[Problem], Update]:
    """Two products of k rows with d and two with x, and one update of x of rank 2k."""

    def build(problem: Problem) -> Update:
        x, d = problem.x.clone(), problem.d
        shape = (*x.shape[:-2], 2 * k, x.shape[-1])
        # Short, so that x stays of size one however often it is updated.
        left, right = (1e-3 * torch.randn(shape, dtype=x.dtype, device=x.device) for _ in range(2))
        rows = left[..., :k, :].contiguous()

        def product(matrix: Tensor) -> None:
            torch.matmul(rows, matrix)

        def products_one_by_one(matrix: Tensor) -> None:
            for row in rows:
                torch.mv(matrix.T, row)

        def update() -> None:
            (x.addmm_ if x.dim() == 2 else x.baddbmm_)(left.mT, right)

        def update_one_by_one() -> None:
            for u, v in zip(left, right, strict=True):
                x.addr_(u, v)

        def step(multiply: Callable[[Tensor], None], add: Callable[[], None]) -> None:
            for matrix in (d, d.mT, x, x.mT):
                multiply(matrix)
            add()

        alone = x.dim() == 2
        forms = [
            partial(step, multiply, add)
            for multiply in (product, products_one_by_one)[: 1 + alone]
            for add in (update, update_one_by_one)[: 1 + alone]
        ]
        # Whole steps are compared: alone, each part would find its matrix in the cache.
        return Update(min(forms, key=_seconds))

    return build


def _seconds(function: Callable[[], object]) -> float:
    """Return the median of a few warm calls."""
    return statistics.median([timed(function) for _ in range(6)][1:])
