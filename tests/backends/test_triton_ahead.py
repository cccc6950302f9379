"""The Triton kernels without a GPU: how many a step launches, and that a GPU could run them."""

import re

import pytest
import torch

from geoopt_projunn.backends.triton import backend, passing, support
from tests._modes import Recorder

if (lack := support.lack_of_triton()) is not None:
    pytest.skip(f"the kernels cannot be used: {lack}", allow_module_level=True)
if support.INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from tests._triton import ARCHITECTURES, assert_runs

from ._ahead import RULES, compiled, key, launches, may_overlap, spec

# All kernels, rules, sketches and retractions, in all dtypes; the first of each that is new.
STEPS = {
    "k = 1": ("gradient", spec(1), (1, 512, 512), torch.float32),
    "LSI": ("adam", spec(4, "lsi", "polar", 2), (1, 512, 512), torch.float32),
    "complex": ("amsgrad", spec(4, normalize="spectral"), (3, 144, 64), torch.complex64),
    "scalar": ("scalar amsgrad", spec(2, "tangent", "cayley"), (2, 65, 33), torch.complex128),
    "float64": ("nesterov", spec(3, sweep=0, normalize="angle"), (1, 80, 80), torch.float64),
    "k = 16": ("momentum", spec(16), (1, 512, 512), torch.float32),
    "complex, k = 16": ("amsgrad", spec(16, retraction="polar"), (1, 96, 96), torch.complex128),
    "complex, k = 8": ("amsgrad", spec(8), (1, 512, 512), torch.complex128),
    "complex64, k = 16": ("amsgrad", spec(16), (1, 512, 512), torch.complex64),
    # Small matrices, by one kernel.
    "small": ("gradient", spec(1), (544, 64, 64), torch.complex64),
    "small, AMSGrad": ("amsgrad", spec(1), (1, 64, 64), torch.complex64),
    "small, LSI": ("scalar", spec(4, "lsi", "polar", 2), (1, 64, 64), torch.float32),
    "small, float64": ("nesterov", spec(2, "tangent", "cayley"), (2, 33, 33), torch.float64),
    "small, k = 16": ("adam", spec(16, normalize="angle"), (9, 64, 64), torch.float32),
    "small, unaligned": ("momentum", spec(1, sweep=8), (3, 9, 9), torch.float32),
}
LITTLE_ROOM = 99 * 1024
"""Bytes that the threads of a program share on GPUs of compute capability 8.6."""
SPILT_BY_OTHERS = 64
"""Bytes of a thread, at small ranks, by Triton before and after 3.7."""


@pytest.mark.parametrize("step", STEPS)
def test_two_generations_of_gpus_could_run_the_kernels(monkeypatch, step):
    """They compile, fit, keep full precision, and at small ranks spill no registers."""
    rule, how, shape, dtype = STEPS[step]
    done = set()
    *_, last = found = launches(monkeypatch, rule, how, shape, dtype)
    for launch in found:
        if key(launch) in done:
            continue
        done.add(key(launch))
        for architecture in ARCHITECTURES:
            made, name = compiled(launch, architecture), launch.kernel.__name__
            assert_runs(made, architecture, name)
            is_large = (1 + dtype.is_complex) * how.k > 16
            assert made.shared <= (support.ROOM_FOR_ALL if is_large else LITTLE_ROOM), name
            if may_overlap(launch, architecture):
                assert_waits(made.ptx, name, lets_go=launch is not last)
            else:
                assert "griddepcontrol" not in made.ptx, name
            most = 0 if support.version() == (3, 7) else SPILT_BY_OTHERS
            assert made.spilt <= most or how.k > 4, (name, architecture)


def test_five_programs_of_small_matrices_fit_on_a_multiprocessor(monkeypatch):
    """Of an H100, with 2^16 registers, 228 KiB of shared memory, 1 KiB of it for each program."""
    rule, how, shape, dtype = STEPS["small"]
    (launch,) = launches(monkeypatch, rule, how, shape, dtype)
    made = compiled(launch, 90)
    assert 5 * 32 * launch.options["num_warps"] * launch.options["maxnreg"] <= 2**16
    assert 5 * (made.shared + 1024) <= 228 * 1024


def assert_waits(ptx, name, *, lets_go):
    """Assert that a kernel waits before it touches memory, and when the next one may start."""
    first, memory = (
        [found.start() for found in re.finditer(pattern, ptx)]
        for pattern in (
            r"griddepcontrol\.wait",
            r"\b(ld|st|atom|red)[.\w:]*\.global|\bcp\.async",
        )
    )
    assert len(first) == 1, name
    assert first[0] < memory[0], name
    # No thread goes around it.
    before = ptx[ptx.index("{", ptx.index(".entry")) : first[0]]
    assert not re.search(r"\bbra\b|@!?%p", before), name
    after = ptx[first[0] : memory[0]]
    assert ("griddepcontrol.launch_dependents" in after) == lets_go, name
    assert ptx.count("griddepcontrol") == 1 + lets_go, name


@pytest.mark.parametrize("overlaps", [False, True])
def test_all_but_the_first_kernel_of_a_step_start_early_where_they_overlap(monkeypatch, overlaps):
    monkeypatch.setattr(passing, "overlaps", lambda device, programs: overlaps)
    for sketch, count in (("tangent", 14), ("lsi", 11)):
        found = launches(monkeypatch, "gradient", spec(2, sketch), (1, 640, 64), torch.float32)
        assert [one.options["OVERLAPS"] for one in found] == [overlaps] * count
        early = [one.options["starts_early"] for one in found]
        assert early == [False] + [overlaps] * (count - 1)


@pytest.mark.parametrize("n", [2, 64, 65, 4096, 65536])
@pytest.mark.parametrize("k", [1, 2, 16])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_a_step_is_fourteen_launches_whatever_its_size(monkeypatch, dtype, rule, k, n):
    """And one launch where a program has room for a matrix."""
    how = spec(min(k, n // 2))
    found = launches(monkeypatch, rule, how, (2, n, n), dtype)
    assert len(found) == (1 if n <= 64 else 14)
    for launch in found:
        # What CUDA allows.
        assert all(size < 2**16 for size in launch.grid[1:])


@pytest.mark.parametrize("shape", [(1, 2**22, 8), (2**20, 2, 2)])
def test_cuda_takes_the_grids_of_tall_matrices_and_of_many(monkeypatch, shape):
    for k in (1, shape[-1] // 2):
        for launch in launches(monkeypatch, "adam", spec(k), shape, torch.float32):
            assert launch.grid[0] < 2**31
            assert all(size < 2**16 for size in launch.grid[1:])


def test_rows_that_32_bits_do_not_count_are_left_to_the_reference():
    assert backend._knows(torch.Size((2**26, 16)), torch.float32, spec(16), 32)
    assert not backend._knows(torch.Size((2**26 + 1, 16)), torch.float32, spec(16), 32)


@pytest.mark.parametrize(("shared", "largest"), [(166_912, 16), (101_376, 8)])
def test_sketches_for_which_a_gpu_has_no_room_are_left_to_the_reference(
    monkeypatch, shared, largest
):
    monkeypatch.setattr(support, "_shared_bytes", lambda device: shared)
    for dtype, most in ((torch.complex64, largest), (torch.float64, 16)):
        size = torch.Size((64, 64)), dtype
        room = support.largest_sketch.__wrapped__(torch.device("cuda", 0))
        assert [k for k in (1, 8, 16) if backend._knows(*size, spec(k), room)][-1] == most


@pytest.mark.parametrize("k", [1, 16])
def test_a_step_allocates_little_and_does_nothing_else(monkeypatch, k):
    """What a graph that is captured must not have: copies, fills, reads."""
    n = 4096
    with Recorder() as recorder:
        launches(monkeypatch, "adam", spec(k), (1, n, n), torch.float32)
    own = {"empty", "empty_like"}  # those of the test among them
    assert recorder.operations <= own | {"split", "split_with_sizes", "detach", "view", "alias"}
    of_memory = [size for size in recorder.created if size != n * n]
    assert sum(of_memory) < 200 * k * n
