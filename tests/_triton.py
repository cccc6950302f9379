"""What the tests of Triton kernels share: kernels run interpreted, and compile without a GPU."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from geoopt_projunn.backends.triton import support

ROOT = Path(__file__).parents[1]
needs_triton = pytest.mark.skipif(
    not support.INSTALLED, reason="needs triton, which torch for CPUs does not bring"
)
ARCHITECTURES = (80, 90)


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


def spilled_bytes(source, architecture, **options):
    """Compile a kernel without a GPU; return how much of a thread's registers does not fit."""
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
    return int(re.search(r"STACK:(\d+)", usage)[1])
