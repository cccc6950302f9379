"""What Triton compiles for a GPU does what torch's operations do."""

import subprocess
import sys

import pytest

from tests._triton import ROOT, needs_triton

# The replayed cases launch interpreted kernels themselves.
_NN = ("tests/nn/interpreted.py", "-k", "not replayed")
_RECURRENCES = (
    "tests/nn/interpreted_recurrence.py",
    "-k",
    "loop_in_double_precision and (one or three) or depend_on_the_others",
)


@needs_triton
@pytest.mark.parametrize("tests", [("tests/ptx/steps.py",), _NN, _RECURRENCES], ids=lambda t: t[0])
def test_compiled_kernels_do_what_the_reference_does(tests):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-p", "tests.ptx.plugin", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert " skipped" not in done.stdout
