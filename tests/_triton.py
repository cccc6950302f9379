"""What the tests of Triton kernels share: kernels run interpreted, and compile without a GPU."""

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from geoopt_projunn.backends.triton import support

ROOT = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(
    support.lack_of_triton() is not None,
    reason=f"the kernels cannot be used: {support.lack_of_triton()}",
)
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""What CUDA gives a program, by architecture."""
ARCHITECTURES = tuple(SHARED_BYTES)


def run_interpreted(*arguments):
    """Run pytest in a process in which Triton interprets its kernels on a CPU."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout


class Compiled(NamedTuple):
    """What a GPU would run."""

    spilt: int
    """Bytes of a thread's registers that do not fit."""
    shared: int
    """Bytes of memory that the threads of a program share."""
    in_tf32: bool
    """Whether a product rounds its inputs to 10 bits."""
    ptx: str


def compile_ahead(source, architecture, **options):
    """Compile a kernel without a GPU."""
    import triton
    from triton.backends.compiler import GPUTarget

    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [tool, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    spilt = int(re.search(r"STACK:(\d+)", usage)[1])
    ptx = compiled.asm["ptx"]
    in_tf32 = "tf32" in compiled.asm["ttir"] or "tf32" in ptx
    return Compiled(spilt, compiled.metadata.shared, in_tf32, ptx)


def assert_runs(compiled, architecture, name):
    """Assert that a GPU has room for a program, and that it works in full precision."""
    assert compiled.shared <= SHARED_BYTES[architecture], name
    assert not compiled.in_tf32, name


class InterpretedAsCompiled:
    """An interpreted kernel that is launched as a compiled one: with addresses."""

    def __init__(self, kernel, args):
        self.kernel = kernel
        self.dtypes = [arg.dtype if isinstance(arg, torch.Tensor) else None for arg in args]

    def run(self, grid, args):
        of_tensors = self.dtypes + [None] * (len(args) - len(self.dtypes))
        own = [
            arg if dtype is None else at_address(arg, dtype)
            for arg, dtype in zip(args, of_tensors, strict=True)
        ]
        self.kernel[grid](*own)


class InterpretedLaunches:
    """Launches that follow each other, as :func:`launches.joined` returns them."""

    def __init__(self, launches):
        self.launches = launches

    def start(self, values, device):
        from geoopt_projunn.backends.triton.launches import Place

        for compiled, grid, args in self.launches:
            own = [values[a.number] + a.offset if isinstance(a, Place) else a for a in args]
            compiled.run(grid, own)


def replay_interpreted(monkeypatch, module):
    """Let a module join launches of interpreted kernels; return these."""
    found = []

    def joined(launches):
        found.append(InterpretedLaunches(list(launches)))
        return found[-1]

    monkeypatch.setattr(module, "can_join", lambda compiled: True)
    monkeypatch.setattr(module, "joined", joined)
    monkeypatch.setattr(module, "stream_of", lambda device: 0)
    return found


def at_address(address, dtype):
    memory = (ctypes.c_char * dtype.itemsize).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)
