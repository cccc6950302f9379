"""Where one program takes the whole step of a matrix, no two of them share what one writes."""

from collections import defaultdict

import numpy
import pytest
import torch
from triton.runtime.interpreter import interpreter_builder

from geoopt_projunn.backends.spec import StepSpec
from geoopt_projunn.backends.triton import passing
from tests._matrices import unitary

from ._step import C64, F32, F64, step


@pytest.fixture
def touched(monkeypatch):
    """Note which words are read and written by which programs."""
    read, written = defaultdict(set), defaultdict(set)

    def noted(name, found, ptrs, mask):
        own = getattr(interpreter_builder, name)

        def access(*args):
            where, inside = args[ptrs].data, numpy.asarray(args[mask].data, dtype=bool)
            for address in numpy.broadcast_to(where, inside.shape)[inside].tolist():
                for memory in found:
                    memory[address].add(interpreter_builder.grid_idx[0])
            return own(*args)

        monkeypatch.setattr(interpreter_builder, name, access)

    noted("create_masked_load", [read], 0, 1)
    noted("create_masked_store", [written], 0, 2)
    noted("create_atomic_rmw", [read, written], 1, 3)
    return read, written


@pytest.mark.parametrize(
    ("shape", "dtype", "spec", "rule"),
    [
        ((3, 24, 24), F32, StepSpec(1, "tangent", "exponential", 1), "gradient"),
        ((3, 20, 9), C64, StepSpec(2, "tangent", "cayley", 3), "amsgrad"),
        ((3, 16, 16), F64, StepSpec(3, "lsi", "polar", 2), "scalar amsgrad"),
        ((3, 33, 20), F32, StepSpec(16, "tangent", "exponential", 0), "nesterov"),
    ],
)
def test_programs_share_no_memory_that_one_of_them_writes(
    monkeypatch, touched, shape, dtype, spec, rule
):
    """They are not in step with each other: one may be parts of the step ahead."""
    launched, launch = [], passing.launch

    def noted(kernel, grid, *args, **options):
        launched.append(grid)
        launch(kernel, grid, *args, **options)

    monkeypatch.setattr(passing, "launch", noted)
    n = shape[-2]
    x = unitary(3, n, n, dtype=dtype)[..., : shape[-1]].contiguous()
    step("triton", x, torch.randn(shape, dtype=dtype) / n, spec, rule=rule)
    assert launched == [(3,)]
    read, written = touched
    assert {program for programs in written.values() for program in programs} == {0, 1, 2}
    for address, programs in written.items():
        assert len(programs | read.get(address, set())) == 1
