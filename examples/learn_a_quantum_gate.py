"""Learn a gate of seven qubits from what it does to random states.

Each step sees 32 random states x and Ux, U unknown, and lowers ‖Wx − Ux‖².

- "whole": W is a 128 x 128 unitary matrix, and U is drawn from the Haar measure.
- "brickwork": W is a circuit of gates on pairs of neighbours, a batch of 4 x 4 matrices; U as well.
  Its loss has local minima: from some starts a method ends in one.

Steps in radians and Adam on torch's parametrizations, by the infidelity 1 − |tr(UᴴW)|² / n².
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import _needed  # noqa: F401
import geoopt
import torch
from _options import at_least, not_negative, output_folder, positive
from _pictures import plt, save_picture
from torch import Tensor
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD

DTYPE, BATCH, LAYERS = torch.complex128, 32, 4
Learner = tuple[Callable[[], Tensor], torch.optim.Optimizer, Callable[[float], float]]


def random_unitary(*shape: int) -> Tensor:
    return LowRankUnitary().random(*shape, dtype=DTYPE).as_subclass(Tensor)


def brickwork(qubits: int) -> list[int]:
    """Return the first qubit of each gate of a circuit."""
    return [first for layer in range(LAYERS) for first in range(layer % 2, qubits - 1, 2)]


def circuit(qubits: int, gates: Tensor, states: Tensor) -> Tensor:
    """Apply gates, (m, 4, 4), to the columns of states, one after the other."""
    for first, gate in zip(brickwork(qubits), gates, strict=True):
        states = (gate @ states.reshape(2**first, 4, -1)).reshape(states.shape)
    return states


def infidelity(w: Tensor, u: Tensor) -> float:
    """Return 1 − |tr(UᴴW)|² / n² without loss of digits where it is small."""
    half = (w - (u.conj() * w).sum().sgn() * u).abs().square().sum() / (2 * len(u))
    return float(half * (2 - half))


def low_rank(start: Tensor, k: int, lr: float, space: str = "ambient") -> Learner:
    """Make the weight a point on the manifold; the angle of a step falls to nearly nothing."""
    weight = geoopt.ManifoldParameter(start.clone(), manifold=LowRankUnitary(k))
    momentum = {"momentum": 0.9, "nesterov": True, "momentum_space": space}
    optimizer = ProjUNNRiemannianSGD([weight], lr=lr, normalize="angle", **momentum)
    return lambda: weight, optimizer, lambda done: 1e-4**done


def parametrized(start: Tensor, kind: str, lr: float) -> Learner:
    """Make the weight a function of free entries, which Adam trains."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(start)
    torch.nn.utils.parametrizations.orthogonal(module, orthogonal_map=kind)
    module.weight = start
    return lambda: module.weight, torch.optim.Adam(module.parameters(), lr), lambda done: 1 - done


METHODS: dict[str, dict[str, Callable[[Tensor], Learner]]] = {
    "whole": {
        "ours, k = 8": partial(low_rank, k=8, lr=0.7),
        "ours, k = 16": partial(low_rank, k=16, lr=0.5),
        "torch, cayley": partial(parametrized, kind="cayley", lr=0.03),
        "torch, matrix_exp": partial(parametrized, kind="matrix_exp", lr=0.03),
    },
    "brickwork": {
        "ours, k = 2": partial(low_rank, k=2, lr=0.1, space="tangent"),
        "torch, cayley": partial(parametrized, kind="cayley", lr=0.03),
    },
}


@dataclass
class Record:
    task: str
    method: str
    seed: int
    seconds: float = 0
    infidelities: list[float] = field(default_factory=list)


def learn(record: Record, qubits: int, steps: int) -> Record:
    """Learn one gate by one method from one seed."""
    torch.manual_seed(record.seed)
    n, act, shape = 2**qubits, torch.matmul, (2**qubits, 2**qubits)
    if record.task == "brickwork":
        act, shape = partial(circuit, qubits), (len(brickwork(qubits)), 4, 4)
    states = torch.eye(n, dtype=DTYPE)
    target = act(random_unitary(*shape), states)
    weight, optimizer, decay = METHODS[record.task][record.method](random_unitary(*shape))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: decay(step / steps))
    for _ in tqdm(range(steps), desc=f"{record.task}: {record.method}", mininterval=1):
        x = torch.nn.functional.normalize(torch.randn(n, BATCH, dtype=DTYPE), dim=0)
        # Time of the processor, which other work on the machine does not stretch.
        start = time.process_time()
        optimizer.zero_grad()
        ((act(weight(), x) - target @ x).abs().square().sum() / BATCH).backward()
        optimizer.step()
        schedule.step()
        record.seconds += time.process_time() - start
        record.infidelities.append(infidelity(act(weight().detach(), states), target))
    return record


def main(arguments: list[str] | None = None) -> list[Record]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--qubits", type=at_least(5, "for k = 16"), default=7, help="at least 5")
    add("--steps", type=positive, default=300)
    add("--seeds", nargs="+", type=not_negative, default=[0, 1, 2], help="of circuits")
    add("--output", type=output_folder, default=Path("outputs"), help="folder to write to")
    add("--smoke", action="store_true", help="a few seconds, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.qubits, options.steps, options.seeds = 5, 80, [0]
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    first, lines, records = options.seeds[0], [], []
    for axes, (task, methods) in zip(panels, METHODS.items(), strict=True):
        for seed in options.seeds[: 1 if task == "whole" else None]:
            for color, name in enumerate(methods):
                r = learn(Record(task, name, seed), options.qubits, options.steps)
                axes.semilogy(r.infidelities, f"C{color}", label=name if r.seed == first else None)
                end = f"{options.steps:>7}{r.seconds:>9.2f}{r.infidelities[-1]:>12.0e}"
                lines.append(f"{task:<12}{name:<20}{seed:>4}{end}")
                records.append(r)
        axes.set(xlabel="step", ylabel="infidelity", title=task)
        axes.legend()
    print("\nInfidelity: how far the gate is from the hidden one; 0 is exact, 1e-14 is rounding")
    print("task        method              seed  steps  seconds  infidelity")
    print("\n".join(lines))
    save_picture(figure, options.output / "learn_a_quantum_gate.png")
    return records


if __name__ == "__main__":
    main()
