"""Ask a GPU all that this package has to know of it, once and unattended; see gpu.sh.

Each part runs in a process of its own, for so many seconds at most, and what it has found by then
is kept, whatever becomes of it. The most important parts come first: when the time is over, the
rest is left out. To a folder go gpu.json, logs.tar.gz, summary.txt and, with matplotlib, gpu.png;
the summary is also what is printed last.
"""

import argparse
import json
import multiprocessing
import os
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import gpu_layers
import gpu_report
import gpu_steps
import gpu_tests
import gpu_variants
from gpu_timing import Cases


class Part(NamedTuple):
    seconds: int
    cases: Callable[[str], Cases]


PARTS = {
    "environment": Part(20, gpu_steps.environment),
    "compiling": Part(75, gpu_steps.compiling),
    "waiting": Part(40, gpu_steps.waiting),
    "times": Part(50, gpu_steps.times),
    "launches": Part(25, gpu_steps.launches),
    "compared": Part(30, gpu_steps.compared),
    "compiling-batches": Part(60, gpu_variants.compiling),
    "batches": Part(40, gpu_variants.batches),
    "overlapping": Part(30, gpu_variants.overlapping),
    "host": Part(20, gpu_steps.host),
    "peers": Part(45, gpu_steps.peers),
    "tf32": Part(15, gpu_steps.tf32),
    "recurrences": Part(45, gpu_layers.recurrences),
    "convolutions": Part(25, gpu_layers.convolutions),
    "tests": Part(120, gpu_tests.tests),
}
TOTAL = 420
"""Seconds of all parts; the limits of single ones add up to more."""
GRACE = 3
"""Seconds in which a process that was asked to end has to."""


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--seconds", type=float, default=TOTAL, help="of all parts together")
    # A process that shares the state of a GPU with another cannot use it. Without one, a fork
    # spares the imports.
    parser.add_argument("--start", choices=("spawn", "fork"), help="how processes are started")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + options.seconds
    start = options.start or ("spawn" if options.device == "cuda" else "fork")
    report: dict[str, Any] = {"device": options.device, "parts": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.parts:
            remaining = end - time.monotonic()
            # A CPU, which has no limits of its own, only tries the script.
            limit = min(PARTS[name].seconds, remaining) if options.device == "cuda" else remaining
            if remaining <= GRACE:
                report["parts"][name] = {"ended": "left out: no time", "seconds": 0, "found": {}}
            else:
                report["parts"][name] = run(name, options.device, limit, Path(folder), start)
            print(f"{name}: {report['parts'][name]['ended']}", flush=True)
            # Whatever ends this, what was found is written.
            (options.output / "gpu.json").write_text(json.dumps(report, indent=1))
        with tarfile.open(options.output / "logs.tar.gz", "w:gz") as logs:
            logs.add(folder, "logs")
    gpu_report.draw(report, options.output / "gpu.png")
    text = gpu_report.summary(report)
    (options.output / "summary.txt").write_text(text)
    print(text, flush=True)
    return report


def run(name: str, device: str, limit: float, folder: Path, start: str) -> dict[str, Any]:
    """Run one part in a process of its own; return what it found, and how it ended."""
    context = multiprocessing.get_context(start)
    begun = time.monotonic()
    process = context.Process(target=work, args=(name, device, folder))
    process.start()
    try:
        process.join(max(0.0, limit - GRACE))
        ended = "done" if process.exitcode == 0 else f"died with {process.exitcode}"
        if process.is_alive():
            ended = f"ended after {limit:.0f} s"
            process.terminate()
            process.join(GRACE)
    finally:
        # And what it has started.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    lines = folder / f"{name}.jsonl"
    found = lines.read_text().splitlines() if lines.exists() else []
    return {
        "ended": ended,
        "seconds": round(time.monotonic() - begun, 1),
        "found": dict(map(json.loads, found)),
    }


def work(name: str, device: str, folder: Path) -> None:
    """Go through the cases of a part, and write down what each returned, or what it raised."""
    os.setpgid(0, 0)
    log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT)
    sys.stdout.flush()
    for stream in (1, 2):
        os.dup2(log, stream)
    with (folder / f"{name}.jsonl").open("w") as lines:
        for label, case in PARTS[name].cases(device):
            start = time.monotonic()
            try:
                value = case()
            except Exception as error:  # one case must not cost the others
                value = f"{type(error).__name__}: {str(error)[:200]}"
            print(f"{label} ({time.monotonic() - start:.1f} s): {value}", flush=True)
            lines.write(json.dumps((label, value), default=str) + "\n")
            lines.flush()


if __name__ == "__main__":
    main()
