"""Gated recurrent units as torch has them and as the textbook writes them."""

import torch

from geoopt_projunn.nn import OrthogonalGRU
from tests.nn._oracles import scattered, textbook_modrelu

INPUTS, HIDDEN = 3, 6


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
