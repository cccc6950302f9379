"""Other ways to do what the defaults do. None of them is offered by the package."""

from collections.abc import Callable

import torch

from geoopt_projunn.drift import sweep_columns_
from geoopt_projunn.linalg.basis import orthonormalize
from geoopt_projunn.linalg.dense import skewh
from geoopt_projunn.linalg.hashing import uniform
from geoopt_projunn.linalg.rows import IN_TORCH, Products, generator_rows
from geoopt_projunn.sketches import SKETCHES, Sketch, Sketched


def powers(more: int, first: Callable[..., torch.Tensor]) -> Sketch:
    """Keep what touches orth(Ω^(1 + more) T), T the given test vectors."""

    def sketch(
        x: torch.Tensor,
        d: torch.Tensor,
        k: int,
        counter: torch.Tensor,
        products: Products,
        floor: float,
    ) -> Sketched:
        rows = first(x, d, k, counter)
        for _ in range(1 + more):
            rows = generator_rows(orthonormalize(rows.double()).to(x.dtype), x, d)
        return touching(x, d, rows)

    return sketch


def touching(x: torch.Tensor, d: torch.Tensor, rows: torch.Tensor) -> Sketched:
    """Keep everything of the generator that touches the span of the rows."""
    q = orthonormalize(rows.double())
    z = generator_rows(q.to(x.dtype), x, d).double()
    w = orthonormalize(torch.cat((q, z), -2))
    alpha, beta = w @ q.mT, w @ z.mT
    half = (beta - alpha @ (q @ z.mT) / 2) @ alpha.mT
    return Sketched(w, half - half.mT)


def random_vectors(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> torch.Tensor:
    n = x.shape[-1]
    return uniform(counter, k * n).to(x.dtype).view(-1, k, n)


def all_rows(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> torch.Tensor:
    """Make the default's test vectors of all rows of the gradient instead of a few."""
    along, anywhere = random_vectors(x, d, 2 * k, counter).split(k, -2)
    unit = torch.nn.functional.normalize
    return (unit(along @ d, dim=-1) + 0.3 * unit(anywhere, dim=-1)) @ x.mT


def few_rows(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> torch.Tensor:
    """Make the test vectors of rows, as the default does at k = 1, at every k."""
    return combined(d, k, counter) @ x.mT


def few_columns(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> torch.Tensor:
    """Make the test vectors of columns, as the default does from k = 2 on, at every k."""
    return combined(d.mT, k, counter)


def combined(d: torch.Tensor, k: int, counter: torch.Tensor) -> torch.Tensor:
    n = d.shape[-1]
    count = min(4 * k, n)
    turn = (count * counter[:, None] + torch.arange(count)) % n
    weights, anywhere = random_vectors(d, d, 2 * k, counter).split(k, -2)
    rows = weights[..., :count] @ d.gather(-2, turn.unsqueeze(-1).expand(-1, -1, n))
    unit = torch.nn.functional.normalize
    return unit(rows, dim=-1) + 0.3 * unit(anywhere, dim=-1)


def largest_columns(
    x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor
) -> torch.Tensor:
    return columns(d, IN_TORCH.squared_column_norms(d).topk(k).indices)


def next_columns(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> torch.Tensor:
    n = x.shape[-1]
    return columns(d, (k * counter[:, None] + torch.arange(k)) % n)


def columns(d: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return d.mT.gather(-2, index.unsqueeze(-1).expand(-1, -1, d.shape[-1]))


class LastBasis:
    """Q of the step before, iterated; alone or mixed with the largest columns."""

    def __init__(self, mixed: bool) -> None:
        self.mixed = mixed

    def __call__(
        self,
        x: torch.Tensor,
        d: torch.Tensor,
        k: int,
        counter: torch.Tensor,
        products: Products,
        floor: float,
    ) -> Sketched:
        if int(counter.max()) == 0:
            self.rows = random_vectors(x, d, k, counter)
        test = self.rows
        if self.mixed:
            top = orthonormalize(largest_columns(x, d, k, counter).double()).to(x.dtype)
            test = generator_rows(orthonormalize(test.double()).to(x.dtype) + top, x, d)
        sketched = touching(x, d, test)
        q = orthonormalize(test.double()).to(x.dtype)
        # A matrix that has got there has no gradient: keep its basis from dying.
        self.rows = torch.where(d.any(-1).any(-1)[:, None, None], generator_rows(q, x, d), q)
        return sketched


def best_possible(
    x: torch.Tensor,
    d: torch.Tensor,
    k: int,
    counter: torch.Tensor,
    products: Products,
    floor: float,
) -> Sketched:
    """Keep the k largest pairs of singular values of the generator, O(n³)."""
    generator = skewh(d.double() @ x.double().mT)
    vectors = torch.linalg.eigh(1j * generator).eigenvectors[..., -k:]
    return touching(x, d, vectors.real.mT.to(x.dtype))


def twice_as_wide(
    x: torch.Tensor,
    d: torch.Tensor,
    k: int,
    counter: torch.Tensor,
    products: Products,
    floor: float,
) -> Sketched:
    return SKETCHES["tangent"](x, d, 2 * k, counter, products)


ALTERNATIVES: dict[str, Sketch] = {
    "rows at every k": powers(0, few_rows),
    "columns at every k": powers(0, few_columns),
    "all rows": powers(0, all_rows),
    "row space alone": powers(0, lambda x, d, k, c: random_vectors(x, d, k, c) @ d @ x.mT),
    "two more power steps": powers(2, lambda x, d, k, c: random_vectors(x, d, k, c) @ d @ x.mT),
    "random test vectors": powers(0, random_vectors),
    "random, one more power step": powers(1, random_vectors),
    "largest columns": powers(0, largest_columns),
    "columns in turn": powers(0, next_columns),
    "last basis": LastBasis(mixed=False),
    "last basis and largest columns": LastBasis(mixed=True),
    "2k wide": twice_as_wide,
    "the best of rank 2k, O(n³)": best_possible,
}
"""Sketches, for real matrices only."""


class Carried(torch.optim.Optimizer):
    """Heavy-ball descent whose buffer is carried along with the point."""

    def __init__(
        self, params: list[torch.Tensor], lr: float, momentum: float, tangent: bool
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})
        self.tangent = tangent

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["buffer"] = torch.zeros_like(p.data)
                    state["step"] = torch.zeros(len(p), dtype=torch.int64)
                x, manifold, buffer = p.data, p.manifold, state["buffer"]
                grad = manifold.proju(x, p.grad) if self.tangent else p.grad
                buffer.mul_(group["momentum"]).add_(grad)
                sketched = manifold.sketch_direction(x, buffer, state["step"])
                rotation = manifold.rotation(sketched, -group["lr"], x.dtype)
                rotation.apply_(buffer, IN_TORCH)
                rotation.apply_(x, IN_TORCH)
                sweep_columns_(x, 1, state["step"], torch.ones(len(x), dtype=torch.bool))
                state["step"] += 1
