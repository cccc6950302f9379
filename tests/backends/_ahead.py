"""Compile the Triton kernels for GPUs that are not there, as a step would launch them."""

from typing import NamedTuple

import torch
from triton.compiler import ASTSource

from geoopt_projunn.backends.spec import NativeRule, StepSpec
from geoopt_projunn.backends.triton import passing
from geoopt_projunn.backends.triton import step as turning
from tests._triton import compile_ahead

_TYPES = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
_HOW = ("num_warps", "maxnreg")
OVERLAPPING = 90
"""From this architecture on, kernels begin before those before them have ended."""
RULES = {
    "gradient": NativeRule("gradient", (), ()),
    "momentum": NativeRule("momentum", ("m",), (0.9, 0.3, False)),
    "nesterov": NativeRule("momentum", ("m",), (0.9, 0.0, True)),
    "adam": NativeRule("adam", ("m", "v"), (0.9, 0.999, 1e-8)),
    "amsgrad": NativeRule("adam", ("m", "v", "w"), (0.9, 0.999, 1e-8)),
    "scalar": NativeRule("adam", ("m", "v"), (0.9, 0.999, 1e-8)),
    "scalar amsgrad": NativeRule("adam", ("m", "v", "w"), (0.9, 0.999, 1e-8)),
}


class Launch(NamedTuple):
    kernel: object
    grid: tuple
    args: tuple
    options: dict


def launches(monkeypatch, rule, spec, shape, dtype):
    """Return what a step launches, without data and without running it."""
    found = []
    monkeypatch.setattr(
        passing, "launch", lambda kernel, grid, *a, **o: found.append(Launch(kernel, grid, a, o))
    )
    x = torch.empty(shape, dtype=dtype, device="meta")
    native = RULES[rule]
    of_second = (*shape[:-2], 1, 1) if "scalar" in rule else shape
    buffers = {
        "step": torch.empty(shape[:1], dtype=torch.int64, device="meta"),
        "skipped": torch.empty(shape[:1], dtype=dtype.to_real(), device="meta"),
        "m": torch.empty_like(x),
        "v": torch.empty(of_second, dtype=dtype.to_real(), device="meta"),
        "w": torch.empty(of_second, dtype=dtype.to_real(), device="meta"),
    }
    group = {"lr": 0.1, "maximize": False}
    turning.take(x, torch.empty_like(x), buffers, native, spec, group)
    return found


def spec(k, sketch="tangent", retraction="exponential", sweep=1, normalize=None):
    return StepSpec(k, sketch, retraction, sweep, normalize=normalize)


def source(launch, *, overlaps=False):
    """Return a kernel with its arguments' types, as Triton makes it of them."""
    options = {**launch.options, "OVERLAPS": overlaps}
    names, bits = launch.kernel.arg_names, launch.kernel.do_not_specialize
    types, constants, attributes = {}, {}, {}
    for index, (name, value) in enumerate(zip(names, launch.args, strict=False)):
        if isinstance(value, torch.Tensor):
            types[name] = _TYPES[value.dtype]
        elif name not in bits and value == 1:
            types[name], constants[(index,)] = "constexpr", value
        else:
            types[name] = "i64" if name in bits else "i32"
        if isinstance(value, torch.Tensor) or (name not in bits and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    for name in names[len(launch.args) :]:
        value = options[name]
        types[name] = "constexpr"
        constants[(names.index(name),)] = getattr(value, "value", value)
    return ASTSource(fn=launch.kernel, signature=types, constexprs=constants, attrs=attributes)


def key(launch):
    """Return what launches have in common that are compiled to the same."""
    made = source(launch)
    # Of whole steps the names are alike.
    name = launch.kernel.src
    how = [launch.options.get(option) for option in _HOW]
    return name, str(made.signature), str(made.constants), str(made.attrs), *how


def compiled(launch, architecture):
    """Compile a kernel as it would be launched."""
    how = {name: launch.options[name] for name in _HOW if name in launch.options}
    overlaps = may_overlap(launch, architecture)
    made = source(launch, overlaps=overlaps)
    return compile_ahead(made, architecture, launch_pdl=overlaps, **how)


def may_overlap(launch, architecture):
    """Return whether a kernel begins before the one before it has ended."""
    return architecture >= OVERLAPPING and "OVERLAPS" in launch.options
