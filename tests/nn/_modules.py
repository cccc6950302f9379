"""One small module of each kind, in double precision, and an input for it."""

import torch

from geoopt_projunn import nn
from tests.nn._oracles import scattered

RECURRENT = {
    f"{kind.__name__} {nonlinearity}": (kind, nonlinearity)
    for kind in (nn.OrthogonalRNN, nn.UnitaryRNN, nn.OrthogonalRNNCell, nn.UnitaryRNNCell)
    for nonlinearity in ("modrelu", "relu", "tanh")
} | {
    f"{kind.__name__} modrelu": (kind, "modrelu")
    for kind in (nn.OrthogonalGRU, nn.OrthogonalGRUCell)
}
# Of the grids one has self-mirrored frequencies only, one a single one.
CONVOLUTIONS = {
    f"{kind.__name__} {arguments}": (kind, arguments)
    for kind, arguments in (
        (nn.OrthogonalConv1d, (2, 3, 4)),
        (nn.OrthogonalConv1d, (3, 2, 5)),
        (nn.OrthogonalConv2d, (2, 2, 2)),
        (nn.OrthogonalConv2d, (1, 4, (4, 6), 2)),
        (nn.OrthogonalConv3d, (2, 2, (2, 3, 4))),
        (nn.UnitaryConv2d, (2, 2, (2, 3))),
    )
}
# With the size of their signals, which they do not know.
SMALL_KERNELS = {
    "BlockOrthogonalConv2d (1, 4, 3, 2)": (nn.BlockOrthogonalConv2d, (1, 4, 3, 2), (4, 6)),
}
MODULES = [*RECURRENT, *CONVOLUTIONS, *SMALL_KERNELS]
LAYERS = [name for name in RECURRENT if "Cell" not in name]


class Twice(torch.nn.Module):
    """Two steps of a cell, so that all of its parameters take part."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        return self.cell(x, self.cell(x))


def build(name, **options):
    dtype = torch.complex128 if name.startswith("Unitary") else torch.float64
    if name not in RECURRENT:
        kind, arguments = {**CONVOLUTIONS, **SMALL_KERNELS}[name][:2]
        module = kind(*arguments, dtype=dtype, init="haar", **options)
        torch.nn.init.normal_(module.bias)
        return module
    kind, nonlinearity = RECURRENT[name]
    module = kind(3, 4, nonlinearity=nonlinearity, dtype=dtype, init="haar", **options)
    return Twice(scattered(module)) if "Cell" in name else scattered(module)


def inputs(name, batch=2):
    dtype = torch.complex128 if name.startswith("Unitary") else torch.float64
    if name in CONVOLUTIONS:
        _, (channels, _, size, *_) = CONVOLUTIONS[name]
        dims = int(CONVOLUTIONS[name][0].__name__[-2])
        grid = (size,) * dims if isinstance(size, int) else size
        return torch.randn(batch, channels, *grid, dtype=dtype)
    if name in SMALL_KERNELS:
        _, (channels, *_), size = SMALL_KERNELS[name]
        return torch.randn(batch, channels, *size, dtype=dtype)
    shape = (batch, 3) if "Cell" in name else (3, batch, 3)
    return torch.randn(shape, dtype=dtype)


def output(module, x, **options):
    """Return the states of a layer, or the output of any other module."""
    y = module(x, **options)
    return y[0] if isinstance(y, tuple) else y


def values(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def at(module, parameters, x):
    y = torch.func.functional_call(module, parameters, (x,))
    return y[0] if isinstance(y, tuple) else y
