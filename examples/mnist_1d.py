"""Classify MNIST-1D: 40 numbers in a row, in which a digit is hidden among noise.

Recurrent networks of the same size read the numbers one by one, and name the digit after the last
one: torch.nn.GRU, an OrthogonalGRU, the same with the recurrent matrix that it starts with, and an
OrthogonalRNN, which has no gates that could forget the noise. The script writes a table, a CSV
file and a picture.

    python examples/mnist_1d.py              # two minutes
    python examples/mnist_1d.py --smoke      # seconds, for a test

The package mnist1d makes the data on this machine; it is part of the extra "examples".
"""

import argparse
from collections.abc import Callable

import _needed  # noqa: F401
import torch
from _mnist_1d import compare, parser
from _networks import Model, adam
from _options import check_ranks, positive
from _tasks import Row

from geoopt_projunn.nn import OrthogonalGRU, OrthogonalRNN

BETAS = (0.9, 0.999)
Make = Callable[[int, int | None], torch.nn.RNNBase]

# Each layer, the learning rate, and that of the recurrent matrix: None for one of torch's, 0 for
# one that stays as it is. The best of a few, 3e-3 to 2e-2 for all but the recurrent matrix.
NETWORKS: dict[str, tuple[Make, float, float | None]] = {
    "GRU": (lambda hidden, k: torch.nn.GRU(1, hidden), 1e-2, None),
    "orthogonal GRU": (lambda hidden, k: OrthogonalGRU(1, hidden, k=k), 1e-2, 3e-3),
    "orthogonal GRU, frozen": (lambda hidden, k: OrthogonalGRU(1, hidden, k=k), 1e-2, 0.0),
    "orthogonal RNN": (lambda hidden, k: OrthogonalRNN(1, hidden, k=k, init="cayley"), 1e-2, 1e-3),
}


def build(name: str, options: argparse.Namespace) -> tuple[Model, torch.optim.Optimizer]:
    make, lr, recurrent_lr = NETWORKS[name]
    layer = make(options.hidden, options.k)
    model = Model(layer, torch.nn.Linear(options.hidden, 10), last=True)
    if recurrent_lr:
        return model, adam(model, lr, recurrent_lr, BETAS)
    model.layer.weight_hh_l0.requires_grad_(recurrent_lr is None)
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.Adam(trained, lr, BETAS)


def main(arguments: list[str] | None = None) -> list[Row]:
    options_parser = parser("mnist_1d", __doc__.splitlines()[0], NETWORKS)
    options_parser.add_argument("--hidden", type=positive, default=128, help="size of the state")
    options = options_parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.hidden, options.batch = 2, 16, 1000
    if any(NETWORKS[name][2] is not None for name in options.networks):
        check_ranks(options_parser, [options.k], "hidden", options.hidden)
    return compare(build, options, clip=1)


if __name__ == "__main__":
    main()
