"""The tables of the update benchmark."""

import argparse
import importlib.metadata
import math
import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from update_methods import COPY, DEFAULT, OURS

PACKAGES = ("torch", "geoopt", "geoopt-projunn", "geotorch", "pogo-torch", "cdopt")


@dataclass
class Result:
    """One method at one size, with one number of threads."""

    method: str
    kind: str
    n: int
    threads: int
    times: list[float]
    """Milliseconds of an update in each round."""
    passes: int | None
    """That an update makes over memory of the size of the matrix."""
    of_pass: list[float]
    """Milliseconds of a pass in each round, by the copy."""
    bytes_of_pass: int

    @property
    def ms(self) -> float:
        return statistics.median(self.times)

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second of its passes."""
        return self.passes and self.passes * self.bytes_of_pass / (self.ms / 1e3)

    @property
    def floor(self) -> float | None:
        """Milliseconds of its passes, as the copy makes them."""
        return self.passes and self.passes * statistics.median(self.of_pass)

    @property
    def over_floor(self) -> float | None:
        """The median ratio within a round."""
        return self.passes and _ratio(self.times, [self.passes * ms for ms in self.of_pass])

    def over(self, other: "Result") -> float:
        """Return the median ratio within a round: what slows the machine down slows both."""
        return _ratio(self.times, other.times)


@dataclass
class Report:
    """All that was measured in a run."""

    machine: dict[str, Any]
    results: list[Result] = field(default_factory=list)
    tall: list[Result] = field(default_factory=list)
    """Of n × n/4 matrices, with the first number of threads."""
    small: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Milliseconds of a step of one small matrix, of 32 in one parameter, and of 32 alone."""
    peaks: dict[str, float] = field(default_factory=dict)

    def of(self, threads: int) -> list[Result]:
        return [r for r in self.results if r.threads == threads]

    def over_ours(self, result: Result, name: str = OURS) -> float | None:
        among = self.tall if result in self.tall else self.of(result.threads)
        ours = _at(among, name, result.n)
        return result.over(ours) if ours else None

    def _others(self, found: list[Result], what: str) -> Iterable[str]:
        """Yield the ratios of others over the cheapest of ours, and over the default."""
        for name in (OURS, DEFAULT):
            if any(r.method == name for r in found):
                yield f"Others over `{name}`, {what}:"
                yield _table(
                    found, ("floor", "peer"), partial(self.over_ours, name=name), _two_digits
                )

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "results": [self._as_json(result) for result in self.results],
            "tall": [self._as_json(result) for result in self.tall],
            "small": self.small,
            "peaks": self.peaks,
        }

    def _as_json(self, result: Result) -> dict[str, Any]:
        return {
            **vars(result),
            "ms": result.ms,
            "bandwidth": result.bandwidth,
            "floor": result.floor,
            "over_floor": result.over_floor,
            "over_ours": self.over_ours(result),
        }

    def text(self) -> str:
        parts = []
        for threads in dict.fromkeys(r.threads for r in self.results):
            found = self.of(threads)
            parts += [
                f"Milliseconds of one update, {threads} thread(s):",
                _table(found, ("floor", "ours", "peer"), lambda r: r.ms, _three_digits),
                f"Ours over the floor, {threads} thread(s):",
                _table(found, ("ours",), lambda r: r.over_floor, _three_digits),
                *self._others(found, f"{threads} thread(s)"),
                f"Gigabytes per second of a copy, {threads} thread(s):",
                _table(found, ("floor",), _gigabytes, _three_digits),
                *_growth(found),
            ]
        return "\n\n".join([*parts, *self.beside(), self.provenance()]) + "\n"

    def beside(self) -> Iterable[str]:
        """Yield the cost of rectangular and of many matrices, and the memory of a step."""
        if self.tall:
            threads = self.tall[0].threads
            yield f"Milliseconds of one update of an n × n/4 matrix, {threads} thread(s):"
            yield _table(self.tall, ("floor", "ours", "peer"), lambda r: r.ms, _three_digits)
            yield from self._others(self.tall, f"n × n/4, {threads} thread(s)")
        if self.small:
            head = "| | one small matrix, ms | 32 in one parameter, ms | ratio |"
            lines = [f"{head} 32 parameters, ms | ratio |", "|---|---|---|---|---|---|"]
            yield f"Small matrices, {self.machine['threads'][0]} thread(s):"
            for name, (one, *many) in self.small.items():
                cells = "".join(f" {ms:.3f} | {ms / one:.1f} |" for ms in many)
                lines.append(f"| {name} | {one:.3f} |{cells}")
            yield "\n".join(lines)
        if self.peaks:
            n = int(self.peaks["n"])
            each = [f"{v:.3f} n² for {name}" for name, v in self.peaks.items() if name != "n"]
            yield (
                f"Peak memory of a step beyond parameter, gradient and state at n = {n}, in "
                f"elements: {', '.join(each)}."
            )

    def provenance(self) -> str:
        m = self.machine
        versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
        threads = " and ".join(map(str, m["threads"]))
        how = f"{threads} thread(s), {m['dtype']}{m['batch']}{m['caches']}"
        return f"{m['device']}, {how}; {versions}."


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "backend": options.device,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else _processor(),
        "threads": options.threads,
        "dtype": str(options.dtype).removeprefix("torch."),
        "batch": f", batches of {options.batch}" if options.batch else "",
        "caches": ", caches emptied before each update of a size" if options.cold else "",
        "versions": versions,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _at(results: list[Result], method: str, n: int) -> Result | None:
    return next((r for r in results if (r.method, r.n) == (method, n)), None)


def _ratio(times: list[float], others: list[float]) -> float:
    """Return the median ratio within a round: what slows the machine down slows both."""
    return statistics.median(a / b for a, b in zip(times, others, strict=False))


def _table(
    results: list[Result],
    kinds: Iterable[str],
    value: Callable[[Result], float | None],
    shown: Callable[[float], str],
) -> str:
    columns = sorted({r.n for r in results})
    lines = [
        "| method |" + "".join(f" n = {n} |" for n in columns),
        "|---|" + "---|" * len(columns),
    ]
    for method in dict.fromkeys(r.method for r in results if r.kind in kinds):
        found = [_at(results, method, n) for n in columns]
        values = [value(r) if r else None for r in found]
        if values != [None] * len(values):
            cells = ["–" if v is None else shown(v) for v in values]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _growth(results: list[Result]) -> Iterable[str]:
    for name in (OURS, COPY):
        near, far = _at(results, name, 1024), _at(results, name, 8192)
        if near and far:
            factor = far.ms / near.ms
            yield (
                f"{name}: from n = 1024 to 8192 the time grows {factor:.1f} times, as n to the "
                f"power {math.log(factor) / math.log(8):.2f}."
            )


def _gigabytes(result: Result) -> float | None:
    return result.bandwidth and result.bandwidth / 1e9


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _two_digits(value: float) -> str:
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"
