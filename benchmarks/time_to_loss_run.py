"""One run of time_to_loss.py: train to the target, and time what is not the gradient."""

import statistics
import time
from dataclasses import dataclass

from time_to_loss_tasks import Task, drawn
from tqdm import tqdm

PATIENCE = 30
TARGET = 1e-2
"""The population loss to reach, relative to the start."""
OUTCOMES = ("reached", "over budget", "overtaken", "stalled", "diverged")
"""How a run may end, the best first; "overtaken" by another learning rate, in fewer steps."""
REACHED, OVER_BUDGET, OVERTAKEN, STALLED, DIVERGED = OUTCOMES


@dataclass
class Run:
    """What one method did on one problem at one learning rate."""

    problem: str
    n: int
    method: str
    lr: float
    seed: int
    outcome: str
    steps: int
    step_seconds: float
    """Median processor time of a step."""
    wall_seconds: float
    """Sum over the steps."""
    gradient_seconds: float
    """Median processor time of a gradient with respect to the matrix, with drawing its batch."""
    budget: float
    check_every: int
    curve: list[float]
    """Population loss relative to the start, every ``check_every`` steps."""

    @property
    def seconds(self) -> float:
        """Optimizer seconds to the target; the budget, a lower bound, if it was spent."""
        if self.outcome == REACHED:
            return self.steps * self.step_seconds
        return self.budget if self.outcome == OVER_BUDGET else float("inf")


class Stopwatch:
    """Processor seconds, which other processes do not add to, and wall seconds."""

    def __init__(self) -> None:
        self.processor = self.wall = 0.0

    def __enter__(self) -> None:
        self._begun = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.processor += time.process_time() - self._begun[0]
        self.wall += time.perf_counter() - self._begun[1]


def stalled(curve: list[float]) -> bool:
    """Return whether the second half of a curve of some length has found nothing lower."""
    half = len(curve) // 2
    return half >= PATIENCE and min(curve[half:]) >= min(curve[:half])


def run(
    task: Task, every: int, most: float, budget: float, progress: tqdm, target: float = TARGET
) -> Run:
    """Train until the target, ``most`` steps, the budget, or divergence or no progress.

    The loss is looked at every ``every`` steps.
    """
    problem, generator, state = drawn(task.problem, task.n, task.batch, task.seed)
    generator.set_state(state)
    weight, optimizer = task.method.make(problem.start[None], task.lr)
    first = problem.suboptimality(problem.start)
    curve, steps, gradients = [1.0], [], []
    outcome, wall, spent = OVER_BUDGET, 0.0, 0.0
    while spent < budget:
        step, gradient = Stopwatch(), Stopwatch()
        optimizer.zero_grad()
        with step:
            point = weight()
        with gradient:
            grad = problem.gradient(point.detach()[0])[None]
        if point.is_leaf:
            point.grad = grad
        with step:
            if not point.is_leaf:
                point.backward(grad)
            optimizer.step()
        steps.append(step.processor)
        gradients.append(gradient.processor)
        wall += step.wall
        spent += step.processor
        if len(steps) % every:
            continue
        value = problem.suboptimality(weight().detach()[0]) / first
        if not value < 10:
            outcome = DIVERGED
            break
        curve.append(float(f"{value:.4g}"))
        progress.set_postfix(loss=value, refresh=False)
        progress.update(every)
        if value < target:
            outcome = REACHED
            break
        if len(steps) >= most:
            outcome = OVERTAKEN
            break
        if stalled(curve):
            outcome = STALLED
            break
    return Run(
        problem=task.label,
        n=task.n,
        method=task.method.name,
        lr=task.lr,
        seed=task.seed,
        outcome=outcome,
        steps=len(steps),
        step_seconds=statistics.median(steps),
        wall_seconds=wall,
        gradient_seconds=statistics.median(gradients),
        budget=budget,
        check_every=every,
        curve=curve,
    )
