"""The tables of the update benchmark."""

import argparse
import importlib.metadata
import math
import platform
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from update_methods import FLOOR, OURS

PACKAGES = ("torch", "geoopt", "geoopt-projunn", "geotorch", "pogo-torch", "cdopt")


@dataclass
class Result:
    """One method at one size."""

    method: str
    kind: str
    k: int
    n: int
    times: list[float]
    """Milliseconds of an update in each round."""
    bytes_of_floor: int

    @property
    def ms(self) -> float:
        return statistics.median(self.times)

    @property
    def bandwidth(self) -> float:
        """Bytes per second, if it moved what a step of rank 1 has to."""
        return self.bytes_of_floor / (self.ms / 1e3)

    def over(self, other: "Result") -> float:
        """Return the median ratio within a round: what slows the machine down slows both."""
        return statistics.median(a / b for a, b in zip(self.times, other.times, strict=False))


@dataclass
class Report:
    """All that was measured in a run."""

    machine: dict[str, Any]
    copy_bandwidth: float
    results: list[Result] = field(default_factory=list)
    small: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """Milliseconds of a step of one small matrix, of 32 in one parameter, and of 32 alone."""
    peaks: dict[str, float] = field(default_factory=dict)

    def at(self, method: str, n: int) -> Result | None:
        return next((r for r in self.results if (r.method, r.n) == (method, n)), None)

    def over_floor(self, result: Result) -> float | None:
        floor = self.at(FLOOR.format(result.k), result.n)
        return result.over(floor) if floor else None

    def over_ours(self, result: Result) -> float | None:
        ours = self.at(OURS, result.n)
        return result.over(ours) if ours else None

    def as_json(self) -> dict[str, Any]:
        return {
            "machine": self.machine,
            "copy_bandwidth": self.copy_bandwidth,
            "results": [
                {
                    **vars(result),
                    "ms": result.ms,
                    "over_floor": self.over_floor(result),
                    "over_ours": self.over_ours(result),
                    "over_copy_bandwidth": result.bandwidth / self.copy_bandwidth,
                }
                for result in self.results
            ],
            "small": self.small,
            "peaks": self.peaks,
        }

    def text(self) -> str:
        parts = [
            "Milliseconds of one update:",
            self.table(("floor", "ours", "peer"), lambda r: r.ms, _three_digits),
            "Ours over the streaming floor of the same rank:",
            self.table(("ours",), self.over_floor, "{:.2f}".format),
            f"Others over `{OURS}`:",
            self.table(("floor", "peer"), self.over_ours, _two_digits),
        ]
        if self.machine["backend"] == "cuda":
            share = f"The floor's bytes per second over those of a copy, {_giga(self)}:"
            parts += [share, self.bandwidths()]
        parts += [*self.beside(), self.provenance()]
        return "\n\n".join(parts) + "\n"

    def bandwidths(self) -> str:
        return self.table(
            ("floor", "ours"), lambda r: r.bandwidth / self.copy_bandwidth, "{:.2f}".format
        )

    def table(
        self,
        kinds: Iterable[str],
        value: Callable[[Result], float | None],
        shown: Callable[[float], str],
    ) -> str:
        chosen = [r for r in self.results if r.kind in kinds]
        columns = sorted({r.n for r in self.results})
        lines = [
            "| method |" + "".join(f" n = {n} |" for n in columns),
            "|---|" + "---|" * len(columns),
        ]
        for method in dict.fromkeys(r.method for r in chosen):
            found = [self.at(method, n) for n in columns]
            values = [value(r) if r else None for r in found]
            cells = ["–" if v is None else shown(v) for v in values]
            lines.append(f"| {method} | " + " | ".join(cells) + " |")
        return "\n".join(lines)

    def beside(self) -> Iterable[str]:
        """Yield the growth with n, the cost of many matrices and the memory of a step."""
        for name in (OURS, FLOOR.format(1)):
            near, far = self.at(name, 1024), self.at(name, 8192)
            if near and far:
                factor = far.ms / near.ms
                yield (
                    f"{name}: from n = 1024 to 8192 the time grows {factor:.1f} times, as n to the "
                    f"power {math.log(factor) / math.log(8):.2f}."
                )
        if self.small:
            head = "| | one small matrix, ms | 32 in one parameter, ms | ratio |"
            lines = [f"{head} 32 parameters, ms | ratio |", "|---|---|---|---|---|---|"]
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
        how = f"{m['threads']} thread(s), {m['dtype']}{m['batch']}{m['caches']}"
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


def _giga(report: Report) -> str:
    return f"{report.copy_bandwidth / 1e9:.0f} GB/s"


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _two_digits(value: float) -> str:
    return f"{value:.{max(0, 1 - math.floor(math.log10(value)))}f}"
