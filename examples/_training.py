"""One network on one task from one seed, saved as it goes.

After every few iterations a run adds a row to its history and saves itself; a second call continues
it bit for bit, since the batch of an iteration depends on the seed and the number of that iteration
alone.
"""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from _networks import Network
from _tasks import Row, Task
from tqdm import tqdm


def train(
    task: Task,
    network: Network,
    seed: int,
    iterations: int,
    *,
    every: int,
    clip: float | None = None,
    folder: Path | None = None,
    settings: dict[str, Any] | None = None,
) -> Iterator[Row]:
    """Train one network, or continue its run in a folder, and yield the rows of its history.

    A row holds the mean loss over the last ``every`` iterations. Without a folder nothing is
    saved. ``settings`` is whatever has to be the same to continue a run.
    """
    torch.manual_seed(seed)
    model, optimizer = network.build()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, task.decay)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    done, seconds, rows = 0, 0.0, []
    saved = None if folder is None else saved_run(task, network, seed, folder, settings)
    if saved is not None:
        rows = [task.completed(row) for row in saved["rows"]]
        done = rows[-1]["iteration"]
        seconds = rows[-1]["seconds"]
        for name, part in parts.items():
            part.load_state_dict(saved[name])
    yield from rows
    losses = []
    with tqdm(
        total=iterations, initial=done, desc=f"{task.title}: {network.label}", mininterval=1
    ) as bar:
        for iteration in range(done + 1, iterations + 1):
            # Time of the processor, which other work on the machine does not stretch.
            start = time.process_time()
            x, y = task.batch(seed, iteration)
            optimizer.zero_grad()
            loss = task.loss(model(x), y)
            loss.backward()
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            seconds += time.process_time() - start
            bar.update()
            if iteration % every and iteration < iterations:
                continue
            row = {
                "task": task.name,
                "network": network.label,
                "seed": seed,
                "iteration": iteration,
                "loss": sum(losses) / len(losses),
                "seconds": round(seconds, 2),
                "orthogonality_error": model.orthogonality_error(),
                **task.columns(iteration - len(losses) + 1),
                **task.measure(model),
            }
            losses = []
            rows.append(row)
            bar.set_postfix(loss=f"{row['loss']:.2e}")
            if folder is not None:
                state = {"settings": settings, "rows": rows, **_states(parts)}
                _save(_path(task, network, seed, folder), state)
            yield row


def saved_run(
    task: Task, network: Network, seed: int, folder: Path, settings: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Return what a run has saved, None if nothing; refuse one with other settings."""
    path = _path(task, network, seed, folder)
    if not path.exists():
        return None
    saved = torch.load(path)
    both = [saved["settings"] or {}, settings or {}]
    if names := differing(both):
        was, asked = (as_options(one, names) for one in both)
        raise SystemExit(
            f"{path} is a run with {was}, not with {asked}: give its options to "
            "continue it, delete it, or choose another --output."
        )
    return saved


def differing(settings: list[dict[str, Any]]) -> list[str]:
    """Return the names of the settings in which some runs differ."""
    names = dict.fromkeys(name for one in settings for name in one)
    return [name for name in names if len({one.get(name) for one in settings}) > 1]


def as_options(settings: dict[str, Any], names: list[str]) -> str:
    """Write some settings as on the command line."""
    values = {name: "none" if (v := settings.get(name)) is None else v for name in names}
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in values.items())


def _path(task: Task, network: Network, seed: int, folder: Path) -> Path:
    return folder / task.name / f"{_slug(network.label)}-{seed}.pt"


def _states(parts: dict[str, Any]) -> dict[str, Any]:
    return {name: part.state_dict() for name, part in parts.items()}


def _save(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # A run that is killed while it writes leaves the last whole file.
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _slug(label: str) -> str:
    return re.sub(r"\W+", "-", label)
