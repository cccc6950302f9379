"""Rows for a file, and what the columns of a printed table mean."""

import csv
from pathlib import Path
from typing import Any


def write_csv(rows: list[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def explain(**columns: str) -> None:
    """Say what the columns of a table mean."""
    width = max(map(len, columns))
    print("\n" + "\n".join(f"{name:<{width}}  {text}" for name, text in columns.items()))
