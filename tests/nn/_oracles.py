"""Recurrent networks as the textbook writes them, and helpers that every test of them needs."""

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

KINDS = ("real", "complex")
LENGTHS = (3, 6, 6, 1, 4)


def wide(kind):
    return torch.complex128 if kind == "complex" else torch.float64


def textbook_modrelu(z, offset):
    """z/|z| max(0, |z| + b), entry by entry, 0 at 0."""
    modulus = z.abs()
    shifted = (modulus + offset).clamp(min=0)
    return torch.where(modulus > 0, z / torch.where(modulus > 0, modulus, 1) * shifted, 0)


def textbook(layer, x, h0):
    """Run a (T, N, inputs) batch of equal lengths through every layer and direction, by a loop."""
    directions = 2 if layer.bidirectional else 1
    finals = []
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"_l{number}" + ("_reverse" if direction else "")
            w_ih, w_hh = (getattr(layer, name + suffix) for name in ("weight_ih", "weight_hh"))
            bias = 0
            if layer.bias:
                bias = getattr(layer, "bias_ih" + suffix) + getattr(layer, "bias_hh" + suffix)
            h = h0[len(finals)]
            states = []
            for x_t in reversed(x) if direction else x:
                z = x_t.to(w_hh.dtype) @ w_ih.mT + h @ w_hh.mT + bias
                h = activated(layer, z, suffix)
                states.append(h)
            finals.append(h)
            outputs.append(torch.stack(states[::-1] if direction else states))
        x = torch.cat(outputs, -1)
    return x, torch.stack(finals)


def activated(layer, z, suffix):
    if layer.nonlinearity == "modrelu":
        return textbook_modrelu(z, getattr(layer, "offset" + suffix))
    function = getattr(torch, layer.nonlinearity)
    return torch.complex(function(z.real), function(z.imag)) if z.is_complex() else function(z)


def real_embedding(layer, twin):
    """Copy a complex layer into a real torch.nn.RNN of twice the features, [Re, Im] in a row."""
    with torch.no_grad():
        for name, p in twin.named_parameters():
            value = getattr(layer, name)
            if value.ndim == 1:
                p.copy_(torch.cat([value.real, value.imag]))
                continue
            # Between layers each direction's features come as [Re, Im].
            parts = value.split(layer.hidden_size, 1) if "ih_l1" in name else [value]
            p.copy_(
                torch.cat(
                    [
                        torch.cat([torch.cat([w.real, -w.imag], 1), torch.cat([w.imag, w.real], 1)])
                        for w in parts
                    ],
                    1,
                )
            )
    return twin


def scattered(layer):
    """Give every parameter but the recurrent weights values away from their starts."""
    with torch.no_grad():
        for name, p in layer.named_parameters():
            if name.startswith("offset"):
                p.uniform_(-0.4, 0.2)
            elif name.startswith("bias"):
                p.copy_(torch.randn_like(p) / 2)
    return layer


def packed_like(x, lengths=LENGTHS):
    if x.is_complex():  # torch packs complex tensors, but without a gradient
        packed = packed_like(torch.view_as_real(x).flatten(-2), lengths)
        return packed._replace(data=torch.view_as_complex(packed.data.unflatten(-1, (-1, 2))))
    return pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)


def padded(x):
    """Return the data of a batch or of a PackedSequence, as (T, N, features)."""
    if not isinstance(x, PackedSequence):
        return x
    if x.data.is_complex():
        parts = padded(x._replace(data=torch.view_as_real(x.data).flatten(-2)))
        return torch.view_as_complex(parts.unflatten(-1, (-1, 2)))
    return pad_packed_sequence(x)[0]
