"""Pictures, drawn without a screen."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt


def save_picture(figure: plt.Figure, path: Path) -> None:
    """Write a figure, say where, and let it go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(f"\nPicture: {path}")
