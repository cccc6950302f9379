"""What the benchmark of a GPU prints last, and its picture."""

import re
from pathlib import Path
from typing import Any

MOST = 9_500
"""Characters of a summary, so that it is seen whole where only the end of a log is."""
OK = "ok"
"""What a case returns that has nothing to tell."""
MOST_OF_LINE = 800


def summary(report: dict[str, Any]) -> str:
    """Return the results, a line for each case, cut where they would be too long."""
    lines = [f"== summary, device {report['device']}"]
    for name, part in report["parts"].items():
        lines.append(f"-- {name}: {part['ended']}, {part['seconds']} s")
        told = {label: value for label, value in part["found"].items() if value != OK}
        lines += [f"{label}: {_short(value)}"[:MOST_OF_LINE] for label, value in told.items()]
        if len(told) < len(part["found"]):
            lines.append(f"{OK}: {len(part['found']) - len(told)} cases")
    text = "\n".join(lines)
    if len(text) <= MOST:
        return text
    note = "\n… cut here; gpu.json has the rest. How the parts ended:\n"
    ends = " · ".join(f"{name}: {part['ended']}" for name, part in report["parts"].items())
    return text[: MOST - len(note) - len(ends)] + note + ends


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_short, value)) + "]"
    return str(value)


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw the times of steps over n, where matplotlib is and there are any."""
    where = report["parts"].get("environment", {"found": {}})["found"]
    title = str(where.get("device", report["device"])).split(",")[0]
    curves: dict[str, dict[int, float]] = {}
    for label, found in report["parts"].get("times", {"found": {}})["found"].items():
        known = re.fullmatch(r"n=(\d+) (\S+ k=\d+)", label)
        if known is None or not isinstance(found, dict):
            continue
        for kind in ("eager", "graph", "floor"):
            if kind in found:
                curves.setdefault(f"{known[2]}, {kind}", {})[int(known[1])] = found[kind]
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        print("matplotlib is not installed: no picture.")
        return
    figure = Figure((8, 5), layout="constrained")
    axes = figure.subplots()
    styles = {"eager": "--", "graph": "-", "floor": ":"}
    colors = {
        rule: f"C{i}" for i, rule in enumerate(sorted({label.split(",")[0] for label in curves}))
    }
    for label, points in sorted(curves.items()):
        rule, kind = label.split(", ")
        if kind == "floor" and not rule.endswith("k=1"):
            continue  # which is that of k = 1
        xs, ys = zip(*sorted(points.items()), strict=True)
        axes.loglog(xs, ys, styles[kind], color=colors[rule], label=label)
    axes.set(xlabel="n", ylabel="milliseconds of a step", title=title)
    axes.grid(alpha=0.3)
    if curves:
        axes.legend(fontsize="small", ncols=2)
    figure.savefig(path)
