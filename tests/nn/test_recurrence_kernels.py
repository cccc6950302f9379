"""All steps of a recurrence in one launch: interpreted on a CPU, and compiled for GPUs."""

import re

import pytest
import torch

from geoopt_projunn.backends.triton import support
from tests._triton import (
    ARCHITECTURES,
    assert_runs,
    compile_ahead,
    needs_triton,
    run_interpreted,
)
from tests.nn.test_kernels import source

POINTERS = {torch.float32: "*fp32", torch.float64: "*fp64", torch.int32: "i32"}
# Of each dtype, the largest that keeps all tiles, and the largest that there is.
SIZES = [
    (torch.float32, 190),
    (torch.float32, 256),
    (torch.complex64, 128),
    (torch.complex64, 192),
    (torch.float64, 96),
    (torch.float64, 192),
    (torch.complex128, 64),
    (torch.complex128, 128),
]
TILE_OF_A_THREAD = 64
"""Bytes of a tile of float64 or complex64."""


def launched(monkeypatch, n, dtype):
    """Return the kernels of both ways with their arguments, and how many tiles are kept of all."""
    from geoopt_projunn.nn.kernels import recurrence

    found = []
    monkeypatch.setattr(
        recurrence,
        "launch",
        lambda kernel, _, *args, **options: found.append((kernel, args, options)),
    )
    tiling = recurrence.Tiling.of(1, n, dtype)
    rows, matrix = (torch.empty(size, n, dtype=dtype, device="meta") for size in (4, n))
    offset = torch.empty(n, dtype=dtype.to_real(), device="meta")
    loop = recurrence.Loop(matrix, offset, tiling)
    loop.forward_(rows, 10, rows.numel())
    loop.backward_(rows, rows, rows.real, 10, -rows.numel())
    return found, tiling


def compiled(kernel, args, options, architecture):
    options = dict(options)
    compiler = {name: options.pop(name) for name in ("num_warps", "num_stages")}
    types = {
        name: POINTERS[arg.dtype] if isinstance(arg, torch.Tensor) else "i32"
        for name, arg in zip(kernel.arg_names, args, strict=False)
    }
    # As it is called for any addresses, but of the matrix, which is ours.
    assert [p.name for p in kernel.params if p.name in types and specialized(p)] == ["matrix"]
    return compile_ahead(source(kernel, types, options, ["matrix"]), architecture, **compiler)


def specialized(parameter):
    return not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)


@needs_triton
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("dtype", "n"), SIZES, ids=str)
def test_they_compile_and_keep_tiles_in_registers(dtype, n, architecture, monkeypatch):
    kernels, tiling = launched(monkeypatch, n, dtype)
    assert len(kernels) == 2
    for kernel, args, options in kernels:
        name = f"{kernel.__name__} of {n}"
        made = compiled(kernel, args, options, architecture)
        assert_runs(made, architecture, name)
        # What is spilt is read again at each step, as one more tile would be.
        is_spared = dtype != torch.float32 and tiling.kept < tiling.blocks * tiling.pieces
        most = TILE_OF_A_THREAD * (1 if support.version() >= (3, 7) else 2)
        assert made.spilt <= (most if is_spared else 0), name
        assert_states_are_read_after_a_barrier(made.ptx, name)


def assert_states_are_read_after_a_barrier(ptx, name):
    """Assert that it is between the stores of a step and the loads of the next, but those ahead."""
    loop = ptx[ptx.index("Loop Header") :]
    order = "".join(re.findall(r"\b[bls](?=ar\.sync|d\.global|t\.global)", loop))
    assert re.fullmatch("b*l+b+l+b+[sb]*s", order), f"{name}: {order}"
    # Those would be from a cache that other threads' stores do not reach.
    assert "ld.global.nc" not in ptx


@needs_triton
def test_sizes_are_the_largest():
    from geoopt_projunn.nn.kernels.recurrence import Tiling

    for dtype, n in SIZES[::2]:
        tiling, next_larger = Tiling.of(1, n, dtype), Tiling.of(1, n + 3, dtype)
        assert tiling.kept == tiling.blocks * tiling.pieces
        assert next_larger.kept < next_larger.blocks * next_larger.pieces
    for dtype, n in SIZES[1::2]:
        assert Tiling.of(1, n, dtype) is not None
        assert Tiling.of(1, n + 1, dtype) is None


@needs_triton
def test_interpreted_they_do_what_the_loop_of_operations_does():
    run_interpreted("tests/nn/interpreted_recurrence.py", "tests/nn/interpreted_costs.py")
