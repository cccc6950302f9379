"""Nothing of a call is left when its outputs are gone."""

import gc

import pytest
import torch
from torch.autograd.graph import get_gradient_edge

from geoopt_projunn.nn import (
    BlockOrthogonalConv2d,
    OrthogonalConv2d,
    OrthogonalGRU,
    OrthogonalGRUCell,
    OrthogonalLinear,
    OrthogonalRNN,
    OrthogonalRNNCell,
    UnitaryConv2d,
    UnitaryRNN,
)

SEQUENCE, ROW, IMAGE = (5, 2, 3), (2, 3), (2, 3, 6, 6)
CASES = {
    "OrthogonalRNN": (lambda: OrthogonalRNN(3, 8), SEQUENCE),
    "OrthogonalRNN, torch's kernels": (lambda: fused(3, 8, nonlinearity="relu"), SEQUENCE),
    "UnitaryRNN": (lambda: UnitaryRNN(3, 8), SEQUENCE),
    "OrthogonalGRU": (lambda: OrthogonalGRU(3, 8), SEQUENCE),
    "OrthogonalRNNCell": (lambda: OrthogonalRNNCell(3, 8), ROW),
    "OrthogonalGRUCell": (lambda: OrthogonalGRUCell(3, 8), ROW),
    "OrthogonalLinear": (lambda: OrthogonalLinear(3, 3), ROW),
    "OrthogonalConv2d": (lambda: OrthogonalConv2d(3, 4, 6), IMAGE),
    "UnitaryConv2d": (lambda: UnitaryConv2d(3, 4, 6, init="haar"), IMAGE),
    "BlockOrthogonalConv2d": (lambda: BlockOrthogonalConv2d(3, 4, 3), IMAGE),
}


def fused(*arguments, **options):
    """Return a layer that runs torch's kernels, as on a GPU."""
    kind = type("Fused", (OrthogonalRNN,), {"_fused": True})
    return kind(*arguments, **options)


def nodes(layer):
    """Return where autograd's graph ends at each parameter, new nodes where there is no graph."""
    return [get_gradient_edge(p).node for p in layer.parameters()]


# What is still there keeps its memory, and a CUDA graph cannot record what meets it: it belongs to
# the stream on which it was made.
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_graph_is_gone_with_its_outputs(name, backward):
    build, shape = CASES[name]
    layer = build()
    x = torch.randn(shape, dtype=torch.complex64 if name == "UnitaryConv2d" else torch.float32)
    gc.disable()
    try:
        outputs = layer(x)
        for node in nodes(layer):
            node.metadata["seen"] = True
        del node
        assert any("seen" in node.metadata for node in nodes(layer))
        if backward:
            states = outputs[0] if isinstance(outputs, tuple) else outputs
            states.abs().square().sum().backward()
            del states
        del outputs
        assert not any("seen" in node.metadata for node in nodes(layer))
    finally:
        gc.enable()
