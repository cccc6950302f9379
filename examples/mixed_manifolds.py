"""Read digits with an orthogonal layer, spherical prototypes and a hyperbolic map.

One ProjUNNRiemannianAdam trains four kinds of parameters in the same call:

- a 64 x 64 orthogonal matrix that turns the pixels (LowRankUnitary),
- ten unit prototypes, one for each digit, that classify by the cosine (Sphere),
- ten anchors in a two-dimensional map of the digits (PoincareBall),
- the linear projection to that map, the bias and the temperatures (Euclidean).

The script prints test accuracies and how far each parameter is from its manifold, and draws
the map.
"""

import argparse
from pathlib import Path

import _needed  # noqa: F401
import geoopt
import matplotlib as mpl
import torch
from _options import not_negative, output_folder, positive
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam

mpl.use("Agg")
import matplotlib.pyplot as plt


class Reader(torch.nn.Module):
    """Classify turned pixels twice: by direction, and by place in the hyperbolic plane."""

    def __init__(self) -> None:
        super().__init__()
        unitary, sphere, self.ball = LowRankUnitary(k=1), geoopt.Sphere(), geoopt.PoincareBall()
        self.turn = geoopt.ManifoldParameter(unitary.random(64, 64), manifold=unitary)
        self.prototypes = geoopt.ManifoldParameter(sphere.random(10, 64), manifold=sphere)
        anchors = self.ball.expmap0(0.1 * torch.randn(10, 2))
        self.anchors = geoopt.ManifoldParameter(anchors, manifold=self.ball)
        self.projection = torch.nn.Linear(64, 2)
        self.bias = torch.nn.Parameter(torch.zeros(10))
        self.log_sharpness = torch.nn.Parameter(torch.tensor([2.0, 0.0]))

    def place(self, turned: torch.Tensor) -> torch.Tensor:
        """Return points of the Poincare disk, (m, 2)."""
        return self.ball.expmap0(self.projection(turned.square()))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of both readings, (m, 10) each."""
        turned = pixels @ self.turn.mT
        cosine_sharpness, map_sharpness = self.log_sharpness.exp()
        features = torch.nn.functional.normalize(turned.relu(), dim=-1)
        by_direction = cosine_sharpness * features @ self.prototypes.mT + self.bias
        distance = self.ball.dist(self.place(turned).unsqueeze(1), self.anchors)
        return by_direction, -map_sharpness * distance.square()

    def distances_from_manifolds(self) -> dict[str, float]:
        """Return how far each constrained parameter is from its manifold."""
        with torch.no_grad():
            gram = self.turn.mT @ self.turn - torch.eye(64)
            return {
                "turn (LowRankUnitary)": float(torch.linalg.matrix_norm(gram)),
                "prototypes (Sphere)": float((self.prototypes.norm(dim=-1) - 1).abs().max()),
                "anchors (PoincareBall)": float((self.anchors.norm(dim=-1) - 1).clamp(min=0).max()),
            }


def load_splits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return training pixels, test pixels, training labels and test labels."""
    digits = load_digits()
    parts = train_test_split(
        digits.data.astype("float32") / 16 - 0.5,
        digits.target,
        test_size=360,
        stratify=digits.target,
        random_state=0,
    )
    train, test, train_labels, test_labels = map(torch.from_numpy, parts)
    return train, test, train_labels, test_labels


def draw(model: Reader, pixels: torch.Tensor, labels: torch.Tensor, path: Path) -> None:
    """Draw the test digits and the anchors in the Poincare disk."""
    with torch.no_grad():
        places = model.place(pixels @ model.turn.mT)
        anchors = model.anchors.detach()
    figure, axes = plt.subplots(figsize=(6, 6), layout="constrained")
    axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="0.5"))
    axes.scatter(*places.T, c=labels, cmap="tab10", s=12)
    for digit, (x, y) in enumerate(anchors.tolist()):
        axes.text(x, y, str(digit), fontsize=16, weight="bold", ha="center", va="center")
    axes.set(
        aspect="equal", xlim=(-1.02, 1.02), ylim=(-1.02, 1.02), title="Test digits and anchors"
    )
    axes.axis("off")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=positive, default=60)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--seed", type=not_negative, default=0)
    parser.add_argument(
        "--output", type=output_folder, default=Path("outputs"), help="folder to write to"
    )
    parser.add_argument("--smoke", action="store_true", help="a second, for a test")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.epochs = 2
    torch.manual_seed(options.seed)
    train, test, train_labels, test_labels = load_splits()
    model = Reader()
    optimizer = ProjUNNRiemannianAdam(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.epochs)
    for _ in (epochs := tqdm(range(options.epochs), unit="epoch")):
        for batch in torch.randperm(len(train)).split(64):
            optimizer.zero_grad()
            loss = sum(
                torch.nn.functional.cross_entropy(logits, train_labels[batch])
                for logits in model(train[batch])
            )
            loss.backward()
            optimizer.step()
        schedule.step()
        epochs.set_postfix(loss=f"{loss.item():.3f}")
    with torch.no_grad():
        by_direction, by_place = (
            float((logits.argmax(1) == test_labels).float().mean()) for logits in model(test)
        )
    options.output.mkdir(parents=True, exist_ok=True)
    draw(model, test, test_labels, options.output / "mixed_manifolds.png")
    print(f"\ntest accuracy by direction {by_direction:.1%}, by place {by_place:.1%}")
    for name, distance in model.distances_from_manifolds().items():
        print(f"distance of {name} from its manifold: {distance:.1e}")
    print(f"Map: {options.output / 'mixed_manifolds.png'}")
    return {"by_direction": by_direction, "by_place": by_place, **model.distances_from_manifolds()}


if __name__ == "__main__":
    main()
