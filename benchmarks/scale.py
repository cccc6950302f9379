"""Count what a step of a matrix on many processes exchanges and keeps.

The optimizer takes its real steps, on tensors without data and in a group of processes that is
simulated: nothing is computed, and every exchange is counted. Real processes at a small size have
to exchange the same numbers.

    python benchmarks/scale.py                # n = 4096 ... 262144 on 1 ... 1024 processes
    python benchmarks/scale.py --smoke        # seconds, for a test

Bytes are those that one process sends in a ring: of N numbers (P - 1) / P to join parts, and twice
that to add up. Beside them stands what a method has to send that needs the whole matrix on each
process: Cayley and QR retractions in float32, the Newton-Schulz iteration of Muon in bfloat16.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import distributed, multiprocessing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianSGD

mpl.use("Agg")
import matplotlib.pyplot as plt

SIZES = [4096 * 2**i for i in range(7)]
PROCESSES = [4**i for i in range(6)]
RANKS = (1, 8, 32)
KINDS = {"allreduce_": "added", "_allgather_base_": "joined"}


class Exchanges(TorchDispatchMode):
    """Count the numbers of each kind of exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
            kind = KINDS[func._overloadpacket.__name__]
            self.numbers[kind] += max(t.numel() for t in tensors)
        return func(*args, **(kwargs or {}))


def counted(n: int, processes: int, k: int, device: str = "meta") -> Counter[str]:
    """Count the exchanges of a step with momentum, in the group of processes that there is.

    It is the second one: before the first, processes also look at the points and at each other.
    """
    mesh = init_device_mesh("cpu", (processes,))
    width = -(-n // processes)
    start = min(n, distributed.get_rank() * width)
    part = torch.eye(n, device=device)[start : start + width]

    def placed(local: torch.Tensor) -> DTensor:
        return DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=(n, n), stride=(n, 1)
        )

    p = torch.nn.Parameter(placed(part))
    p.manifold = LowRankUnitary(k=k)
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1, momentum=0.9)
    p.grad = placed(torch.zeros_like(part))
    optimizer.step()
    with Exchanges() as exchanges:
        optimizer.step()
    return exchanges.numbers


def simulated(n: int, processes: int, k: int) -> Counter[str]:
    """Count them in a group that is simulated."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    distributed.init_process_group("fake", rank=0, world_size=processes, store=FakeStore())
    try:
        return counted(n, processes, k)
    finally:
        distributed.destroy_process_group()


def formula(n: int, processes: int, k: int) -> Counter[str]:
    """Return what :func:`counted` has to give on several processes, k > 1; see the step's passes.

    4k columns of the gradient are joined; each of the two products with the generator, of k rows,
    adds up two products and joins two; then the update of 2k rows, and the sweep of one column.
    Parts that are joined are filled up to one width. And three numbers are the learning rate
    and a digest of the options, twice.
    """
    width = -(-n // processes) * processes
    return Counter(added=(6 * k + 1) * n + 3, joined=(8 * k + 2) * width)


def sent(numbers: Counter[str], processes: int) -> float:
    """Return the bytes that one process sends, in float32."""
    return 4 * (2 * numbers["added"] + numbers["joined"]) * (processes - 1) / processes


def whole(n: int, processes: int, bytes_each: int) -> float:
    """Return the bytes that it sends where every process has to join the whole matrix."""
    return bytes_each * n * n * (processes - 1) / processes


def kept(n: int, processes: int, k: int = 8) -> dict[str, float]:
    """Return bytes that a process keeps: point, gradient, momentum, and what a step makes of them.

    That is twice a part while the momentum is made, and later one part and some rows: 100 kn bytes
    as measured on 2 processes at n = 1024, k = 32. Where the matrix is joined it comes on top, and
    as much again for what is computed of it.
    """
    part = 4 * n * n / processes
    step = max(2 * part, part + 100 * k * n)
    return {f"rank {k}": 3 * part + step, "whole matrix": 3 * part + 2 * 4 * n * n}


def _real(rank: int, processes: int, n: int, k: int, store: str, answers: Any) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=processes
    )
    answers.put(counted(n, processes, k, device="cpu"))
    distributed.barrier()
    distributed.destroy_process_group()


def measured(n: int, processes: int, k: int) -> list[Counter[str]]:
    """Count them in real processes, in each of them."""
    answers = multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        store = str(Path(folder, "store"))
        # Raises if one of them does, or dies, and ends the others.
        multiprocessing.spawn(_real, (processes, n, k, store, answers), processes)
    return [answers.get() for _ in range(processes)]


def rows(sizes: list[int], processes: list[int]) -> Iterator[dict[str, Any]]:
    """Yield one line of the table for each size and number of processes."""
    pairs = [(n, count) for n in sizes for count in processes]
    for n, count in tqdm(pairs, unit="size"):
        ours = {k: sent(simulated(n, count, k), count) for k in RANKS}
        others = {"float32": whole(n, count, 4), "bfloat16": whole(n, count, 2)}
        yield {"n": n, "processes": count, "ours": ours, "whole": others, "kept": kept(n, count)}


def draw(table: list[dict[str, Any]], path: Path) -> None:
    """Draw bytes sent against n, and bytes kept against the number of processes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    sizes = sorted({row["n"] for row in table})
    counts = sorted({row["processes"] for row in table})
    some = [row for row in table if row["processes"] == counts[-1]]
    for k in RANKS:
        left.plot(sizes, [row["ours"][k] for row in some], marker="o", label=f"rank {k}")
    for name, style in (("float32", "k--"), ("bfloat16", "k:")):
        values = [row["whole"][name] for row in some]
        left.plot(sizes, values, style, label=f"the whole matrix, {name}")
    left.set(xlabel="n", ylabel="bytes that a process sends in a step")
    left.set_title(f"{counts[-1]} processes")
    n = sizes[len(sizes) // 2]
    some = [row for row in table if row["n"] == n]
    for name, style in (("rank 8", "o-"), ("whole matrix", "k--")):
        right.plot(counts, [row["kept"][name] for row in some], style, label=name)
    right.set(xlabel="processes", ylabel="bytes that a process keeps", title=f"n = {n}")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def size(count: float) -> str:
    """Return a number of bytes in units that are read at a glance."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} GiB"


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs"), help="folder to write to")
    parser.add_argument("--smoke", action="store_true", help="seconds, for a test")
    options = parser.parse_args(arguments)
    sizes, processes = (SIZES[:2], PROCESSES[:2]) if options.smoke else (SIZES, PROCESSES)
    for count in (2,) if options.smoke else (2, 4):
        for counts in measured(256, count, 8):
            expected = formula(256, count, 8)
            if not counts == expected == simulated(256, count, 8):
                raise RuntimeError(f"{count} processes exchanged {counts}, not {expected}.")
        print(f"{count} real processes at n = 256 exchange what the simulation counts.")
    table = list(rows(sizes, processes))
    print("| n | processes |", *(f"sent, rank {k} |" for k in RANKS), "whole, float32 |", end="")
    print(" bfloat16 | kept, rank 8 | kept, whole |")
    print("|---:" * (6 + len(RANKS)) + "|")
    for row in table:
        cells = [*row["ours"].values(), *row["whole"].values(), *row["kept"].values()]
        print(f"| {row['n']} | {row['processes']} |", *(f"{size(cell)} |" for cell in cells))
    options.output.mkdir(parents=True, exist_ok=True)
    draw(table, options.output / "scale.png")
    return table


if __name__ == "__main__":
    main()
