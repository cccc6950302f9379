"""The memory of a step of one matrix, beside geoopt's and torch's.

python benchmarks/step_memory.py --n 1024
"""

import argparse
from collections.abc import Callable

import geoopt
import torch
from memory import peak_bytes
from methods import on_manifold, parametrized

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD


def of_step(make: Callable, start: torch.Tensor) -> float:
    """Return the numbers that a step allocates beyond its gradient, a share of those of start."""
    weight, optimizer = make(start, 0.1)
    grad = torch.randn_like(start) / start.shape[-1]

    def step() -> None:
        point = weight()
        if point.is_leaf:
            point.grad = grad
        else:
            point.backward(grad)
        optimizer.step()
        if not point.is_leaf:
            optimizer.zero_grad()

    step()
    whole = peak_bytes(step) / start.nbytes
    # That of a parametrization makes the gradient on the way.
    return whole if weight().is_leaf else whole - 1


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1024)
    n = parser.parse_args(arguments).n
    ways = {
        "ours, k = 8": on_manifold(LowRankUnitary(8), ProjUNNRiemannianSGD),
        "geoopt EuclideanStiefel": on_manifold(
            geoopt.EuclideanStiefel(), geoopt.optim.RiemannianSGD
        ),
        "geoopt CanonicalStiefel": on_manifold(
            geoopt.CanonicalStiefel(), geoopt.optim.RiemannianSGD
        ),
        "torch orthogonal, cayley": parametrized("cayley", torch.optim.SGD),
    }
    found = {}
    print("Numbers that a step allocates beyond parameter and gradient, in units of n²:")
    for name, make in ways.items():
        found[name] = of_step(make, torch.eye(n))
        print(f"  {name}: {found[name]:.2f}")
    return found


if __name__ == "__main__":
    main()
