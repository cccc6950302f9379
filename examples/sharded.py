"""Learn a rotation of 2048 dimensions whose matrix no process has as a whole.

One linear layer with an orthogonal weight is trained under ``fully_shard``: each process keeps some
of the rows of the matrix, of its gradient and of its momentum, and a step exchanges a few rows.
Start it by

    torchrun --nproc-per-node 2 examples/sharded.py

and again with any other number of processes, or with plain ``python``, to go on from the
checkpoint. The first process shows the loss; at the end come the memory of each process and what a
step exchanged.
"""

import argparse
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _needed  # noqa: F401
import torch
from _options import at_least, check_ranks, not_negative, output_folder, positive
from torch import distributed
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from geoopt_projunn import ProjUNNRiemannianSGD
from geoopt_projunn.distributed import keep_manifolds
from geoopt_projunn.nn import orthogonality_errors, orthogonalize_

SIGNALS, PLANES, BATCH = 64, 16, 64


class Exchanged(TorchDispatchMode):
    """Adds up the bytes that processes exchange inside of it: the largest tensor of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            self.bytes += max((t.numel() * t.element_size() for t in tensors), default=0)
        return func(*args, **(kwargs or {}))


def batches(n: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield signals and what they are turned into, the same ones on every process.

    The signals lie in a subspace, in which the rotation turns planes by one radian.
    """
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, SIGNALS, generator=generator)).Q.mT
    offset = 0.1 * torch.randn(n, generator=generator)
    generator_of_turn = torch.zeros(SIGNALS, SIGNALS)
    for i in range(0, 2 * PLANES, 2):
        generator_of_turn[i, i + 1], generator_of_turn[i + 1, i] = 1.0, -1.0
    turn = torch.matrix_exp(generator_of_turn)
    while True:
        signals = torch.randn(BATCH, SIGNALS, generator=generator)
        yield signals @ basis, signals @ turn @ basis + offset


def build(n: int, k: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return the layer in parts, and its optimizer."""
    layer = torch.nn.Linear(n, n)
    orthogonalize_(layer, "weight", k=k, init="identity")
    with keep_manifolds(layer):
        fully_shard(layer)
    optimizer = ProjUNNRiemannianSGD(layer.parameters(), lr=0.5, momentum=0.9, nesterov=True)
    return layer, optimizer


def bytes_here(layer: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Return how much of parameters, gradients and state this process has."""
    tensors = [t for p in layer.parameters() for t in (p, p.grad, *optimizer.state[p].values())]
    local = [getattr(t, "to_local", lambda t=t: t)() for t in tensors if t is not None]
    return sum(t.numel() * t.element_size() for t in local)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--size",
        type=at_least(SIGNALS, "the dimension of the signals"),
        default=2048,
        help="of the orthogonal matrix",
    )
    parser.add_argument("--k", type=positive, default=8, help="rank of a step")
    parser.add_argument("--steps", type=positive, default=60, help="to take, after those of before")
    parser.add_argument("--seed", type=not_negative, default=0)
    parser.add_argument(
        "--output", type=output_folder, default=Path("outputs"), help="folder to write to"
    )
    parser.add_argument("--smoke", action="store_true", help="a second, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.size, options.steps = 96, 8
    check_ranks(parser, [options.k], "size", options.size)
    if not distributed.is_initialized():
        alone = {} if distributed.is_torchelastic_launched() else {"rank": 0, "world_size": 1}
        store = {"store": distributed.HashStore()} if alone else {}
        distributed.init_process_group("gloo", **alone, **store)
    rank = distributed.get_rank()

    torch.manual_seed(options.seed)
    layer, optimizer = build(options.size, options.k)
    folder = options.output / f"sharded-{options.size}-{options.k}-{options.seed}"
    taken = torch.zeros((), dtype=torch.int64)
    saved = sorted(folder.glob("*/.metadata"))
    if saved:
        state = gathered(layer, optimizer, taken)
        checkpoint.load(state, checkpoint_id=saved[-1].parent)
        set_state_dict(
            layer,
            optimizer,
            model_state_dict=state["layer"],
            optim_state_dict=state["optimizer"],
        )
    first, losses, exchanged = int(taken), [], Exchanged()
    data = batches(options.size, options.seed)
    for _ in range(first):
        next(data)
    with tqdm(total=options.steps, unit="step", disable=rank > 0, file=sys.stderr) as bar:
        for _ in range(options.steps):
            x, y = next(data)
            optimizer.zero_grad()
            loss = (layer(x) - y).square().sum() / (2 * PLANES * BATCH)
            loss.backward()
            losses.append(loss.item())
            # The first step probes the point as well.
            if len(losses) == 2:
                with exchanged:
                    optimizer.step()
            else:
                optimizer.step()
            taken += 1
            bar.set_postfix(loss=f"{losses[-1]:.2e}")
            bar.update()
    state = gathered(layer, optimizer, taken)
    checkpoint.save(state, checkpoint_id=folder / f"step-{int(taken):06}")
    report = {
        "processes": distributed.get_world_size(),
        "first step": first,
        "losses": losses,
        "bytes here": bytes_here(layer, optimizer),
        "peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bytes exchanged": exchanged.bytes,
        "error": orthogonality_errors(layer)["weight"],
    }
    show(report, options.size)
    return report


def gathered(
    layer: torch.nn.Module, optimizer: torch.optim.Optimizer, taken: torch.Tensor
) -> dict[str, Any]:
    """Return what a checkpoint holds, in parts."""
    of_layer, of_optimizer = get_state_dict(layer, optimizer)
    return {"layer": of_layer, "optimizer": of_optimizer, "taken": taken}


def show(report: dict[str, Any], n: int) -> None:
    """Print one line for each process, and what all have in common."""
    lines: list[Any] = [None] * report["processes"]
    line = (
        f"{report['bytes here'] / 2**20:.1f} MiB of parameters, gradients and state, "
        f"{report['peak MiB']:.0f} MiB at most in all"
    )
    distributed.all_gather_object(lines, line)
    if distributed.get_rank() > 0:
        return
    for rank, text in enumerate(lines):
        print(f"process {rank}: {text}")
    step, whole = report["bytes exchanged"] / 2**20, n * n / 2**18
    print(f"a step of the optimizer exchanged {step:.2f} MiB, the matrix has {whole:.1f} MiB")
    first, losses = report["first step"], report["losses"]
    print(
        f"steps {first} to {first + len(losses)}: loss {losses[0]:.2e} to {losses[-1]:.2e}, "
        f"‖WᵀW - I‖ about {report['error']:.1e}"
    )


if __name__ == "__main__":
    main()
    distributed.destroy_process_group()
    # Threads of gloo may still be dropping tensors, for which they wait for the interpreter. One
    # that is shutting down aborts the process then, so that it must not shut down.
    sys.stdout.flush()
    os._exit(0)
