"""The figure of the update benchmark: time against size, both logarithmic."""

from pathlib import Path

import matplotlib as mpl
from update_methods import DEFAULT, MATMUL, OURS
from update_report import Report, Result

mpl.use("Agg")
import matplotlib.pyplot as plt

# Few, for a figure that can be read; the tables have the others.
STYLES = {
    "torch orthogonal, householder": {"color": "tab:brown", "marker": "v"},
    "torch orthogonal, matrix_exp": {"color": "tab:purple", "marker": "^"},
    "torch orthogonal, cayley": {"color": "tab:pink", "marker": "<"},
    "geoopt CanonicalStiefel, RiemannianSGD": {"color": "tab:orange", "marker": "s"},
    "POGO": {"color": "tab:olive", "marker": "D"},
    "geoopt EuclideanStiefel, RiemannianSGD": {"color": "tab:red", "marker": "P"},
    MATMUL: {"color": "black", "linestyle": ":"},
    "SGD, k = 16": {"color": "tab:cyan", "marker": "o"},
    DEFAULT: {"color": "tab:blue", "marker": "o", "linewidth": 2.5, "alpha": 0.6},
    OURS: {"color": "tab:blue", "marker": "o", "linewidth": 2.5},
    "SGD, k = 1, in a CUDA graph": {"color": "tab:green", "marker": "o"},
}


def figure(report: Report, path: Path) -> None:
    drawn, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    results = report.of(report.results[0].threads)
    for method, style in STYLES.items():
        found = sorted((r.n, r.ms) for r in results if r.method == method)
        if found:
            label = f"ours: {method}" if method.startswith("SGD") else method
            axes.plot(*zip(*found, strict=True), label=label, markersize=4, **style)
    floor = sorted((r.n, r.floor) for r in results if r.method == OURS)
    axes.plot(*zip(*floor, strict=True), label=f"floor of {OURS}", color="black", linestyle="--")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({r.n for r in results})
    axes.set_xticks(sizes, [str(n) for n in sizes])
    _slopes(axes, results, sizes)
    axes.set_xlabel("n")
    axes.set_ylabel("milliseconds of one update")
    axes.grid(alpha=0.3)
    drawn.legend(loc="outside right upper", frameon=False)
    drawn.savefig(path, dpi=100)
    plt.close(drawn)


def _slopes(axes: plt.Axes, results: list[Result], sizes: list[int]) -> None:
    """Draw n² below the cheapest and n³ above the dearest of the largest sizes."""
    ends = sizes[-3:]
    shown = [r for r in results if r.n in ends and r.method in STYLES]
    above = 1.6 * max(r.ms / r.n**3 for r in shown)
    below = min(r.ms / r.n**2 for r in shown) / 1.6
    for power, factor, name in ((2, below, "n²"), (3, above, "n³")):
        values = [factor * n**power for n in ends]
        axes.plot(ends, values, color="grey", linewidth=1)
        axes.annotate(f" {name}", (ends[-1], values[-1]), color="grey", va="center")
