"""Classify MNIST-1D by small convolutional networks, plain and orthogonal.

Three convolutions with stride 2, each with a normalization and a ReLU, take 40 numbers to 64
channels of 5, and a linear layer names the digit. All networks have the same channels, strides and
circular padding, and see the same batches:

- plain: torch.nn.Conv1d;
- small kernels: BlockOrthogonalConv1d with the same kernel size;
- full width: OrthogonalConv1d, whose kernels are as long as the sequence.

With these channels every orthogonal convolution preserves norms. Their matrices are stepped in
radians. The script writes a table, a CSV file and a picture.

    python examples/mnist_1d_conv.py              # half a minute
    python examples/mnist_1d_conv.py --smoke      # seconds, for a test

The package mnist1d makes the data on this machine; it is part of the extra "examples".
"""

import argparse
from collections.abc import Callable

import _needed  # noqa: F401
import torch
from _mnist_1d import compare, parser
from _networks import Model
from _options import check_ranks, positive
from _tasks import Row

from geoopt_projunn import ProjUNNRiemannianAdam, param_groups
from geoopt_projunn.nn import BlockOrthogonalConv1d, OrthogonalConv1d, orthogonality_errors

LENGTH, STRIDE, LAYERS = 40, 2, 3

# From channels in, channels out, length, kernel size and rank to a convolution.
Make = Callable[[int, int, int, int, int | None], torch.nn.Module]


def plain(i: int, o: int, length: int, kernel: int, k: int | None) -> torch.nn.Module:
    padding = (kernel - 1) // 2
    return torch.nn.Conv1d(i, o, kernel, STRIDE, padding, padding_mode="circular")


def small(i: int, o: int, length: int, kernel: int, k: int | None) -> torch.nn.Module:
    return BlockOrthogonalConv1d(i, o, kernel, STRIDE, k=k)


def full_width(i: int, o: int, length: int, kernel: int, k: int | None) -> torch.nn.Module:
    # From the identity, the channels that are added would start at zero.
    return OrthogonalConv1d(i, o, length, STRIDE, init="haar", k=k)


NETWORKS: dict[str, Make] = {"plain": plain, "small kernels": small, "full width": full_width}


class Convolutional(Model):
    """Convolutions, each with a normalization and a ReLU, and a linear readout."""

    def __init__(self, make: Make, width: int, kernel: int, k: int | None) -> None:
        layers: list[torch.nn.Module] = []
        channels, length = 1, LENGTH
        for place in range(LAYERS):
            layers.append(make(channels, width << place, length, kernel, k))
            channels, length = width << place, length // STRIDE
            layers += [torch.nn.GroupNorm(1, channels), torch.nn.ReLU()]
        readout = torch.nn.Linear(channels * length, 10)
        super().__init__(torch.nn.Sequential(*layers, torch.nn.Flatten()), readout, last=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.layer(x.permute(1, 2, 0)))

    def orthogonality_error(self) -> float | None:
        """Return the largest one of the layers; None for plain ones."""
        return max(orthogonality_errors(self).values(), default=None)


def build(name: str, options: argparse.Namespace) -> tuple[Model, torch.optim.Optimizer]:
    model = Convolutional(NETWORKS[name], options.width, options.kernel, options.k)
    if name == "plain":
        return model, torch.optim.Adam(model.parameters(), options.lr)
    angle = {"steps": options.steps} if options.steps else {"angle": options.angle}
    groups = param_groups(model, lr=options.lr, **angle)
    return model, ProjUNNRiemannianAdam(groups)


def main(arguments: list[str] | None = None) -> list[Row]:
    options_parser = parser("mnist_1d_conv", __doc__.splitlines()[0], NETWORKS)
    add = options_parser.add_argument
    add("--width", type=positive, default=16, help="channels of the first layer")
    add("--kernel", type=positive, default=5, help="size of a small kernel, odd")
    add("--lr", type=float, default=1e-2, help="learning rate of free weights")
    add("--angle", type=float, default=0.03, help="of a step, in radians")
    add("--steps", type=positive, help="number of steps, which sets the angles instead")
    options = options_parser.parse_args(arguments)
    if options.smoke:
        options.epochs, options.width, options.batch, options.k = 2, 4, 1000, 1
    shortest = LENGTH // STRIDE ** (LAYERS - 1)
    if options.kernel % 2 == 0 or not STRIDE <= options.kernel <= shortest:
        options_parser.error(f"--kernel must be odd, and at least {STRIDE} and at most {shortest}")
    if set(options.networks) != {"plain"}:
        check_ranks(options_parser, [options.k], "width", options.width)
    return compare(build, options)


if __name__ == "__main__":
    main()
