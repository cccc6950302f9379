"""One step of points without an optimizer."""

import torch

from tests.backends._cases import RULES, backend

F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128


def step(name, x, grad, spec, taken=3, rule="gradient", lr=0.1):
    """Take one step; return the point and the buffers."""
    kind, options = RULES[rule]
    group = {"compile": False, **kind([torch.nn.Parameter(x)], **options).defaults, "lr": lr}
    x, made = x.clone(), kind._rule.first_buffers(x, group)
    lead = x.shape[:-2]
    buffers = {
        **made,
        "step": torch.full(lead, taken),
        "skipped": torch.zeros(lead, dtype=x.dtype.to_real()),
    }
    pieces = {key: [value] for key, value in buffers.items()}
    with torch.no_grad():
        backend(name).step_([x], [grad], pieces, kind._rule, group, spec)
    return x, buffers
