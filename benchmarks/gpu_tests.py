"""The tests that need a GPU, as a part of the benchmark of one."""

from collections import Counter
from pathlib import Path
from typing import Any

from gpu_timing import Cases

ROOT = Path(__file__).parents[1]
FIRST = ("tests/optim/test_gpu.py", "tests/optim/test_gpu_graphs.py", "tests/nn/test_gpu.py")
MOST_FAILURES = 6


class Results:
    """Count outcomes, and keep the names and reasons of failures."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.outcome] += 1
        if report.failed:
            self._fail(report)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.counts["not collected"] += 1
            self._fail(report)

    def _fail(self, report: Any) -> None:
        reason = str(getattr(report.longrepr, "reprcrash", report.longrepr)).splitlines()
        self.failures.append(f"{report.nodeid.split('::', 1)[-1]}: {reason[-1][-120:]}")


def tests(device: str) -> Cases:
    """Run each file that has tests of a GPU."""
    found = sorted(
        str(path.relative_to(ROOT))
        for path in ROOT.glob("tests/**/test_*.py")
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    )
    for path in sorted(found, key=lambda path: path not in FIRST) if device == "cuda" else FIRST:
        yield path, lambda path=path: run(path)


def run(path: str) -> dict[str, Any]:
    import pytest

    results = Results()
    options = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "-W", "default"]
    kept_on = ["--continue-on-collection-errors", "--rootdir", str(ROOT)]
    pytest.main([*options, *kept_on, str(ROOT / path)], plugins=[results])
    failures = results.failures[:MOST_FAILURES]
    return {**results.counts, **({"failures": failures} if failures else {})}
