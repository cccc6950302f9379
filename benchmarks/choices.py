"""Measure the alternatives to what the defaults do, on the problems of learning.py.

Each question has a few answers, which are tried on the same problems, seeds and learning rates:

- sketch: which directions a step of rank k turns;
- momentum: where the buffer lives;
- feedback: what the buffer keeps of what a step has not carried;
- retraction: polar, exponential or Cayley;
- second moment: which learning rate is best for Adam, at several ranks and widths.

    python benchmarks/choices.py                      # the tables of the documentation
    python benchmarks/choices.py --smoke              # seconds, for a test
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from learning import FRACTIONS, NEVER, Run, best, train
from methods import GRIDS, Make, Method, on_manifold
from problems import PROBLEMS
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD
from geoopt_projunn.drift import sweep_columns_
from geoopt_projunn.linalg.basis import orthonormalize
from geoopt_projunn.linalg.dense import skewh
from geoopt_projunn.linalg.hashing import uniform
from geoopt_projunn.linalg.rows import generator_rows, squared_column_norms
from geoopt_projunn.sketches import SKETCHES, Sketch, Sketched

RESIDUAL, CONSISTENT = "Procrustes, large residual", "Procrustes, consistent"
BATCHES, NOISY, BROCKETT = "regression, batch 8", "regression, batch 8, noisy", "Brockett"


class Trial(NamedTuple):
    """One answer to a question, to be tried on one problem."""

    question: str
    answer: str
    problem: str
    n: int
    grid: tuple[float, ...]
    make: Make


# -- sketches ------------------------------------------------------------------------------


def powers(more: int, first: Callable[..., torch.Tensor]) -> Sketch:
    """Keep what touches orth(Ω^(1 + more) T), T the given test vectors."""

    def sketch(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> Sketched:
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


def largest_columns(
    x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor
) -> torch.Tensor:
    return columns(d, squared_column_norms(d).topk(k).indices)


def next_columns(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> torch.Tensor:
    n = x.shape[-1]
    return columns(d, (k * counter[:, None] + torch.arange(k)) % n)


def columns(d: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return d.mT.gather(-2, index.unsqueeze(-1).expand(-1, -1, d.shape[-1]))


class LastBasis:
    """Q of the step before, iterated; alone or mixed with the largest columns."""

    def __init__(self, mixed: bool) -> None:
        self.mixed = mixed

    def __call__(self, x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> Sketched:
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


def best_possible(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> Sketched:
    """Keep the k largest pairs of singular values of the generator, O(n³)."""
    generator = skewh(d.double() @ x.double().mT)
    vectors = torch.linalg.eigh(1j * generator).eigenvectors[..., -k:]
    return touching(x, d, vectors.real.mT.to(x.dtype))


def twice_as_wide(x: torch.Tensor, d: torch.Tensor, k: int, counter: torch.Tensor) -> Sketched:
    return SKETCHES["tangent"](x, d, 2 * k, counter)


ALTERNATIVES: dict[str, Sketch] = {
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
"""Real matrices only; none of them is offered by the package."""


# -- momentum ------------------------------------------------------------------------------


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
                rotation.apply_(buffer)
                rotation.apply_(x)
                sweep_columns_(x, 1, state["step"], torch.ones(len(x), dtype=torch.bool))
                state["step"] += 1


# -- the questions -------------------------------------------------------------------------


def trials(n: int) -> Iterator[Trial]:
    """Yield every answer to every question, on the problems that tell answers apart."""
    sgd = ProjUNNRiemannianSGD
    for problem in (RESIDUAL, CONSISTENT, BATCHES, BROCKETT):
        for k in (1, 4):
            for name in ("tangent", *ALTERNATIVES):
                make = on_manifold(LowRankUnitary(k, sketch=name), sgd)
                yield Trial("sketch", f"{name}, k = {k}", problem, n, GRIDS["sgd"], make)
    for problem in (RESIDUAL, CONSISTENT, NOISY):
        for k in (1, 4):
            manifold = LowRankUnitary(k)
            places = {
                "ambient": on_manifold(manifold, sgd, momentum=0.9),
                "ambient, carried": on_manifold(manifold, Carried, momentum=0.9, tangent=False),
                "tangent, carried": on_manifold(manifold, Carried, momentum=0.9, tangent=True),
                "ambient, Nesterov": on_manifold(manifold, sgd, momentum=0.9, nesterov=True),
            }
            for name, make in places.items():
                yield Trial("momentum", f"{name}, k = {k}", problem, n, GRIDS["momentum"], make)
    for problem in (RESIDUAL, CONSISTENT, BATCHES, NOISY):
        for k in (1, 4):
            for share in (0.0, 0.5, 0.9, 0.97, 0.99):
                make = on_manifold(LowRankUnitary(k), sgd, momentum=0.9, error_feedback=share)
                yield Trial("feedback", f"{share}, k = {k}", problem, n, GRIDS["momentum"], make)
    for problem in (RESIDUAL, NOISY):
        for k in (1, 4):
            for name in ("exponential", "polar", "cayley"):
                make = on_manifold(LowRankUnitary(k, retraction=name), sgd)
                yield Trial("retraction", f"{name}, k = {k}", problem, n, GRIDS["sgd"], make)
    for kind, grid in (("elementwise", GRIDS["adam"]), ("scalar", GRIDS["adam, scalar"])):
        for size in (n, 2 * n):
            for k in (1, 4, 16, None):
                make = on_manifold(LowRankUnitary(k), ProjUNNRiemannianAdam, second_moment=kind)
                answer = f"{kind}, {'full rank' if k is None else f'k = {k}'}"
                yield Trial("second moment", answer, BATCHES, size, grid, make)


def measure(trial: Trial, options: argparse.Namespace) -> str:
    """Return a row of a table: steps to each fraction, and the best learning rate of each."""
    runs = []
    for lr in trial.grid[:: options.thin]:
        drawn = [
            PROBLEMS[trial.problem](torch.Generator().manual_seed(seed), trial.n)
            for seed in range(options.seeds)
        ]
        method = Method(trial.question, trial.answer, trial.make)
        curves = train(drawn, method, lr, options.steps)
        runs.append(Run(trial.problem, trial.n, trial.answer, lr, options.seeds, curves, 0.0))
    found = [best(runs, fraction) for fraction in FRACTIONS]
    cells = ["–" if steps == NEVER else f"{steps:g} ({lr:g})" for steps, lr in found]
    return f"| {trial.problem} | {trial.n} | {trial.answer} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> str:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=64, help="size of the matrix")
    parser.add_argument("--steps", type=int, default=1000, help="most steps of a run")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--thin", type=int, default=1, help="take every nth learning rate")
    parser.add_argument("--questions", nargs="+", help="some of them (default: all)")
    parser.add_argument("--output", type=Path, default=Path("outputs/choices.md"))
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.n, options.steps, options.seeds, options.thin = 34, 5, 1, 6
    torch.set_num_threads(1)
    SKETCHES.update(ALTERNATIVES)
    todo = [
        trial
        for trial in trials(options.n)
        if not options.questions or trial.question in options.questions
    ]
    heads = " | ".join(f"{fraction:g} (lr)" for fraction in FRACTIONS)
    lines: list[str] = []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    try:
        for trial in (progress := tqdm(todo, unit="trial")):
            progress.set_postfix_str(f"{trial.question}: {trial.answer}")
            title = f"\n## {trial.question}\n\n| problem | n | answer | {heads} |"
            if title not in lines:
                lines += [title, "|---" * (len(FRACTIONS) + 3) + "|"]
            lines.append(measure(trial, options))
            options.output.write_text("\n".join(lines) + "\n")
    finally:
        for name in ALTERNATIVES:
            del SKETCHES[name]
    print("\n".join(lines))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
