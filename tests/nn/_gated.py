"""Gated recurrent units as torch has them and as the textbook writes them, and what is compared."""

import torch

from geoopt_projunn.nn import OrthogonalGRU
from tests._asserts import assert_within
from tests.nn._oracles import LENGTHS, scattered, textbook_modrelu

INPUTS, HIDDEN = 3, 6
T, N = max(LENGTHS), len(LENGTHS)
NONLINEARITIES = ("modrelu", "relu", "tanh")


def make(*args, **options):
    options = {"init": "haar", "dtype": torch.float64, **options}
    return scattered(OrthogonalGRU(INPUTS, HIDDEN, *args, **options))


def as_torchs(values):
    """Join what torch.nn.GRU has in one weight, among values by the names of our parameters."""
    joined = {}
    for name, value in values.items():
        if name.startswith("weight_hh"):
            value = torch.cat([values[name.replace("hh", "gates")], value])
        if not name.startswith("weight_gates"):
            joined[name] = value
    return joined


def twin(layer):
    """Return the torch.nn.GRU with the weights of a layer with tanh."""
    theirs = torch.nn.GRU(
        *(layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.batch_first),
        bidirectional=layer.bidirectional,
        dtype=layer.weight_hh_l0.dtype,
    )
    theirs.load_state_dict(as_torchs(layer.state_dict()))
    return theirs


def textbook(layer, x, h0):
    """Run a (T, N, inputs) batch of equal lengths through every layer and direction, by a loop."""
    finals = []
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(1 + layer.bidirectional):
            suffix = f"_l{number}" + ("_reverse" if direction else "")
            h, states = h0[len(finals)], []
            for x_t in reversed(x) if direction else x:
                h = textbook_step(layer, x_t, h, suffix)
                states.append(h)
            finals.append(h)
            outputs.append(torch.stack(states[::-1] if direction else states))
        x = torch.cat(outputs, -1)
    return x, torch.stack(finals)


def textbook_step(layer, x, h, suffix):
    w_r, w_z, w_c = getattr(layer, "weight_ih" + suffix).chunk(3)
    g_r, g_z = getattr(layer, "weight_gates" + suffix).chunk(2)
    b = b_hh = torch.zeros(3 * layer.hidden_size, dtype=x.dtype)
    if layer.bias:
        b, b_hh = (getattr(layer, f"bias_{kind}{suffix}") for kind in ("ih", "hh"))
    b_r, b_z, b_c = b.chunk(3)
    d_r, d_z, d_c = b_hh.chunk(3)
    r = 1 / (1 + torch.exp(-(x @ w_r.T + b_r + h @ g_r.T + d_r)))
    z = 1 / (1 + torch.exp(-(x @ w_z.T + b_z + h @ g_z.T + d_z)))
    inner = x @ w_c.T + b_c + r * (h @ getattr(layer, "weight_hh" + suffix).T + d_c)
    if layer.nonlinearity == "modrelu":
        c = textbook_modrelu(inner, getattr(layer, "offset" + suffix))
    else:
        c = getattr(torch, layer.nonlinearity)(inner)
    return (1 - z) * c + z * h


def batch(layer):
    x = torch.randn(T, N, INPUTS, dtype=torch.float64, requires_grad=True)
    count = layer.num_layers * (1 + layer.bidirectional)
    return x, torch.randn(count, N, HIDDEN, dtype=torch.float64, requires_grad=True)


def loss(outputs):
    """Return a generic function of outputs and last states."""
    generator = torch.Generator().manual_seed(1)
    total = 0
    for y in outputs:
        noise = torch.randn(y.shape, dtype=y.dtype, generator=generator)
        total = total + (y * noise).sum() + y.square().sum()
    return total


def gradients(outputs, x, h0, layer, **options):
    """Differentiate that by x, h0 and the parameters, by name."""
    names, leaves = zip(*layer.named_parameters(), strict=True)
    first, second, *rest = torch.autograd.grad(
        loss(outputs), [x, h0, *leaves], allow_unused=True, materialize_grads=True, **options
    )
    return {"x": first, "h0": second, **dict(zip(names, rest, strict=True))}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].shape == value.shape
        assert_within(actual[name], value, 1e-10 * max(1.0, value.abs().max().item()))
