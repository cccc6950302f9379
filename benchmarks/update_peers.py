"""The methods that one might pick instead: n³ updates of other packages.

Each is run as its package documents it. Those that are not installed are left out by the benchmark,
with the command that installs them.
"""

import importlib
import warnings
from collections.abc import Callable, Iterator

import geoopt
import torch
from torch import Tensor
from torch.nn.utils import parametrizations
from update_methods import Method, Update
from update_problem import LENGTH, Problem

Constrain = Callable[[torch.nn.Module], object]


class Holder(torch.nn.Module):
    """A module that has a weight and nothing else."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())


def peers() -> Iterator[Method]:
    for name in ("cayley", "matrix_exp", "householder"):
        yield Method(
            f"torch orthogonal, {name}",
            "peer",
            _parametrized(
                lambda holder, name=name: parametrizations.orthogonal(holder, orthogonal_map=name)
            ),
            complex=name != "householder",
        )
    for name in ("cayley", "expm"):
        yield Method(
            f"geotorch SO, {name}", "peer", _geotorch(name), complex=False, package="geotorch"
        )
    for manifold in (geoopt.CanonicalStiefel, geoopt.EuclideanStiefel):
        for kind in (geoopt.optim.RiemannianSGD, geoopt.optim.RiemannianAdam):
            name = f"geoopt {manifold.__name__}, {kind.__name__}"
            build = _geoopt(manifold, kind)
            yield Method(name, "peer", build, complex=False, rectangular=True)
    yield Method("POGO", "peer", _pogo, package="pogo-torch")
    yield Method("cdopt", "peer", _cdopt, complex=False, batched=False, package="cdopt")


def _parametrized(constrain: Constrain) -> Callable[[Problem], Update]:
    """Make the weight from free parameters, and step those along its gradient."""

    def build(problem: Problem) -> Update:
        holder = Holder(problem.x)
        constrain(holder)
        optimizer = torch.optim.SGD(holder.parameters(), lr=LENGTH)

        def step() -> None:
            optimizer.zero_grad()
            holder.weight.backward(problem.d)
            optimizer.step()

        return Update(step, lambda: holder.weight.detach())

    return build


def _geotorch(name: str) -> Callable[[Problem], Update]:
    def constrain(holder: torch.nn.Module) -> None:
        geotorch = _imported("geotorch")
        # Registered by hand: geotorch.orthogonal would start from a draw of its own.
        torch.nn.utils.parametrize.register_parametrization(
            holder, "weight", geotorch.SO(holder.weight.shape, triv=name).to(holder.weight.device)
        )

    return _parametrized(constrain)


def _geoopt(
    manifold: type[geoopt.manifolds.Manifold], kind: type[torch.optim.Optimizer]
) -> Callable[[Problem], Update]:
    def build(problem: Problem) -> Update:
        p = geoopt.ManifoldParameter(problem.x.clone(), manifold=manifold())
        p.grad = problem.d.clone()
        return Update(kind([p], lr=LENGTH).step, lambda: p.detach().as_subclass(Tensor))

    return build


def _pogo(problem: Problem) -> Update:
    pogo, base = _imported("pogo"), _imported("pogo.base")
    # It takes batches alone.
    p = torch.nn.Parameter(problem.x.clone().view(-1, problem.n, problem.n))
    p.grad = problem.d.clone().view_as(p)
    optimizer = pogo.POGO([p], base.SGD(), LENGTH)
    return Update(optimizer.step, lambda: p.detach().view_as(problem.x))


def _cdopt(problem: Problem) -> Update:
    _imported("cdopt")
    constraints = _imported("cdopt.nn.utils.set_constraints")
    manifolds = _imported("cdopt.manifold_torch")
    holder = Holder(problem.x)
    constraints.set_constraint_dissolving(
        holder,
        "weight",
        manifold_class=manifolds.stiefel_torch,
        manifold_args={"dtype": problem.x.dtype, "device": problem.x.device},
    )
    optimizer = torch.optim.SGD(holder.parameters(), lr=LENGTH)
    dissolved = holder.parametrizations["weight"]

    def step() -> None:
        optimizer.zero_grad()
        # Near the manifold this penalty takes off the whole error in one step of this length.
        penalty = dissolved.quad_penalty() / (8 * LENGTH)
        ((holder.weight * problem.d).sum() + penalty).backward()
        optimizer.step()

    return Update(step, lambda: holder.weight.detach())


def _imported(name: str) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)
