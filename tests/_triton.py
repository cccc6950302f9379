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

    function = packed_metadata = None

    def __init__(self, kernel, args):
        self.kernel = kernel
        self.dtypes = [arg.dtype if isinstance(arg, torch.Tensor) else None for arg in args]

    def run(self, x, y, z, stream, function, packed, metadata, enter, leave, *args):
        of_tensors = self.dtypes + [None] * (len(args) - len(self.dtypes))
        own = [
            arg if dtype is None else at_address(arg, dtype)
            for arg, dtype in zip(args, of_tensors, strict=True)
        ]
        self.kernel[(x, y, z)](*own)


def at_address(address, dtype):
    memory = (ctypes.c_char * dtype.itemsize).from_address(address)
    return torch.frombuffer(memory, dtype=dtype)
