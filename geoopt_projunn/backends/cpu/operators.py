"""The kernels as operators of torch: they say their shapes without data and count their flops.

Each checks what its kernel does not look at, and raises :class:`.kernels.Refused` before anything
has changed.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from ...linalg.precision import WIDE
from . import kernels

_library = torch.library.Library("geoopt_projunn", "DEF")
_NAMES = {"sketch": kernels.SKETCHES, "retract": kernels.RETRACTIONS}


def operator(
    schema: str,
    run: Callable[..., Any],
    without_data: Callable[..., Any],
    flops: Callable[..., int],
) -> Any:
    """Return an operator of torch; ``flops`` is given shapes in place of tensors."""
    name = schema.partition("(")[0]
    _library.define(schema)
    _library.impl(name, run, "CPU")
    torch.library.register_fake(f"geoopt_projunn::{name}", without_data)
    packet = getattr(torch.ops.geoopt_projunn, name)
    register_flop_formula(packet)(flops)
    return packet.default


def mark_changed(tensors: list[torch.Tensor]) -> None:
    """Let autograd notice that tensors it has saved were changed."""
    torch.autograd.graph.increment_version(tensors)


def _of_kernel(
    schema: str, forms: dict[str, str], results: tuple[str, ...], flops: Callable[..., int]
) -> Any:
    """Return the operator that calls the kernel of its name.

    A kernel is told the kind of the first tensor, the sizes, the other arguments, the layout and
    the number of threads, in this order, and where tensors and results are.

    Parameters
    ----------
    schema : str
        what torch has to know
    forms : dict
        The tensors in the order of the kernel. Of each a letter for every size, and its dtype where
        that is not the one of the first: "wide" for the wider one, "int64", "bool". Matrices that
        are "stored" may be so by rows or by columns.
    results : tuple of str
        the same of the results; r is 2k if there is a k
    flops : callable
        as in :func:`operator`
    """
    name = schema.partition("(")[0]
    names, first = re.findall(r"(\w+)[,)]", schema.partition("->")[0]), next(iter(forms))

    def read(values: tuple[Any, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
        given, sizes = dict(zip(names, values, strict=True)), dict[str, Any]()
        for one, form in forms.items():
            for letter, size in zip(form.partition(" ")[0], given[one].shape, strict=True):
                sizes.setdefault(letter, size)
        return given, sizes

    def wanted(form: str, x: torch.Tensor, sizes: dict[str, Any]) -> tuple[Any, torch.dtype]:
        letters, _, kind = form.partition(" ")
        dtypes = {"wide": WIDE[x.dtype], "int64": torch.int64, "bool": torch.bool}
        return tuple(sizes[letter] for letter in letters), dtypes.get(kind, x.dtype)

    def without_data(*values: Any) -> Any:
        given, sizes = read(values)
        x, sizes = given[first], {"r": 2 * given.get("k", 0), **sizes}
        outs = [wanted(form, x, sizes) for form in results]
        tensors = tuple(x.new_empty(shape, dtype=dtype) for shape, dtype in outs)
        return tensors if len(tensors) > 1 else tensors[0] if tensors else None

    def run(*values: Any) -> Any:
        given, sizes = read(values)
        x, tensors, layout = given[first], [], []
        if "p" in sizes:
            kernels.check_numbers(sizes["n"], sizes["p"], given.get("k", 1), given.get("sweep", 0))
        for one, form in forms.items():
            t, (shape, dtype) = given[one], wanted(form, x, sizes)
            if form.endswith("stored"):
                layout.append(kernels.is_by_columns(t))
                t, shape = (t.mT, (*shape[:-2], *shape[:-3:-1])) if layout[-1] else (t, shape)
            elif t is not x or results:
                t = t.contiguous().resolve_conj()
            kernels.check(t, one, shape, dtype)
            tensors.append(t)
        options = [given[one] for one in names if one not in forms]
        if name in _NAMES:
            options[-1] = kernels.check_choice("name", options[-1], _NAMES[name])
        if layout:
            options.append(sum(is_set << bit for bit, is_set in enumerate(layout)))
        outs = without_data(*values)
        tensors += outs if isinstance(outs, tuple) else [] if outs is None else [outs]
        getattr(kernels.kernels, name.rstrip("_"))(
            *(kernels.KINDS[x.dtype], *sizes.values(), *options, torch.get_num_threads()),
            *(t.data_ptr() for t in tensors),
        )
        if name.endswith("_"):
            mark_changed([x])
        return outs

    return operator(schema, run, without_data, flops)


both_sides = _of_kernel(
    "both_sides(Tensor left, Tensor right, Tensor x) -> (Tensor, Tensor)",
    {"x": "bnm", "left": "bln", "right": "brm"},
    ("blm", "brn"),
    lambda left, right, x, **_: 2 * (left[1] + right[1]) * x.numel(),
)
"""left @ x and right @ x.mH"""

add_product_ = _of_kernel(
    "add_product_(Tensor(a!) x, Tensor rows, Tensor factor) -> ()",
    {"x": "bnm", "rows": "brn", "factor": "brm"},
    (),
    lambda x, rows, factor, **_: 2 * rows[1] * x.numel(),
)
"""x += rows.mH @ factor, in place"""

FLOPS_OF_SKETCH = {"tangent": 16, "lsi": 6, "column": 4}
"""Per rank and entry of the matrix."""

sketch = _of_kernel(
    "sketch(Tensor x, Tensor d, int k, Tensor counter, str name) -> (Tensor, Tensor)",
    {"x": "bnp stored", "d": "bnp stored", "counter": "b int64"},
    ("brn wide", "brr wide"),
    lambda x, d, k, counter, name, **_: FLOPS_OF_SKETCH[name] * k * x.numel(),
)
"""geoopt_projunn.sketches.SKETCHES[name], its rows and core"""

# For a generator as long as there is: seven products of the polynomial and twelve squarings; a
# solve, of an elimination and two triangles, and two products; ten solves.
_FLOPS_OF_CORES = {"exponential": 19 * 2.0, "cayley": 8 / 3 + 2 * 2, "polar": 10 * 8 / 3}

retract = _of_kernel(
    "retract(Tensor core, str name) -> Tensor",
    {"core": "brr wide"},
    ("brr",),
    lambda core, name, **_: round(_FLOPS_OF_CORES[name] * core[-1] * core.numel()),
)
"""geoopt_projunn.retractions.RETRACTIONS[name]"""

turn_ = _of_kernel(
    "turn_(Tensor(a!) x, Tensor rows, Tensor delta, int sweep, Tensor counter, Tensor active)"
    " -> Tensor",
    {
        "x": "bnp stored",
        "rows": "brn",
        "delta": "brr wide",
        "counter": "b int64",
        "active": "b bool",
    },
    ("b bool",),
    lambda x, rows, delta, sweep, *_, **__: 4 * (rows[1] + sweep) * x.numel(),
)
"""geoopt_projunn.drift.turn_"""
