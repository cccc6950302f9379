"""Kernels that C++ starts: real compiled ones, and a driver that only takes notes."""

import copy
import importlib.util
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from geoopt_projunn.backends.triton import support

if (lack := support.lack_of_triton()) is not None:
    pytest.skip(f"the kernels cannot be used: {lack}", allow_module_level=True)

import triton
import triton.language as tl

from geoopt_projunn.backends.triton import launches
from geoopt_projunn.backends.triton.launches import Launch, Place, can_join, joined

from ._no_gpu import Launcher, no_gpu

if support.INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)
if launches._LACK is not None:
    pytest.skip(f"nothing is joined: {launches._LACK}", allow_module_level=True)

CPU = torch.device("cpu")


@triton.jit
def kernel(x, other, first, second, flag, SIZE: tl.constexpr):
    """Read and write all that it is given."""
    at = tl.arange(0, SIZE)
    value = tl.load(x + at) + first + second + flag.to(tl.float32)
    if other is not None:
        value += tl.load(other + at)
    tl.store(x + at, value)


@pytest.fixture
def gpu(monkeypatch):
    with no_gpu(monkeypatch, kernel) as own:
        yield own


def by_triton(*args, grid=(2, 3)):
    """Let Triton launch the kernel; return what it returned."""
    return kernel[grid](*args, SIZE=16)


def given(first=5, second=7, flag=True, is_alone=False):
    x, other = torch.zeros(2, 16)
    return x, None if is_alone else other, first, second, flag


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"is_alone": True},
        {"first": 0, "flag": False},
        {"first": 1, "second": 1},
        {"first": -3, "second": -16},
        {"first": -(2**31), "second": 2**31},
        {"first": -(2**63), "second": 2**63 + 1},
    ],
    ids=str,
)
def test_a_kernel_is_given_what_triton_gives_it(gpu, changes):
    args = given(**changes)
    compiled = by_triton(*args)
    addresses = [arg.data_ptr() if isinstance(arg, torch.Tensor) else arg for arg in args]
    launch = Launch(compiled, (2, 3), (*addresses, 16))
    joined([launch]).start((gpu.stream,), CPU)
    theirs, ours = Launcher.seen
    assert ours == theirs


def test_values_of_a_call_stand_in_for_places(gpu):
    x, *others = given()
    compiled = by_triton(x, *others)
    places = Place(1, 0), Place(1, 64), Place(0, 0)
    together = joined([Launch(compiled, (2, 3), (*places, *others[2:], 16))] * 2)
    for first in (-5, 9):
        start = len(Launcher.seen)
        together.start((first, x.data_ptr(), gpu.stream), CPU)
        expected = [x.data_ptr(), x.data_ptr() + 64, first % 2**32, 7, 1]
        assert [seen.args for seen in Launcher.seen[start:]] == [expected] * 2


def test_threads_start_kernels_at_the_same_time(gpu):
    compiled = by_triton(*given())
    places = [Place(number, 0) for number in range(3)]
    together = joined([Launch(compiled, (1,), (*places, 7, True, 16))] * 3)
    Launcher.seen.clear()

    def start(thread):
        for call in range(50):
            together.start((thread, call, thread, gpu.stream), CPU)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(start, range(4)))
    found = sorted(tuple(seen.args) for seen in Launcher.seen)
    expected = [(thread, call, thread, 7, 1) for thread in range(4) for call in range(50)]
    assert found == sorted(expected * 3)


@pytest.mark.parametrize(
    "change",
    [
        {"num_ctas": 2},
        {"launch_cooperative_grid": True},
        {"global_scratch_size": 8},
        {"profile_scratch_size": 8},
        {"instrumentation_mode": "gsan"},
    ],
    ids=str,
)
def test_kernels_that_need_more_than_their_arguments_are_not_joined(gpu, change):
    compiled = by_triton(*given())
    assert can_join(compiled)
    if not change.keys() <= set(compiled.metadata._fields):
        pytest.skip("this Triton has no such thing")
    other = copy.copy(compiled)
    other.module = None
    other.metadata = compiled.metadata._replace(**change)
    assert not can_join(other)


def test_kernels_with_arguments_of_other_kinds_are_not_joined(gpu):
    assert not can_join(kernel.warmup(*given(first=0.5), SIZE=16, grid=(1,)))


def test_a_thread_that_has_not_used_the_gpu_gets_a_context(gpu):
    args = given()
    one = joined([Launch(by_triton(*args), (1,), (0, 0, *args[2:], 16))])
    gpu.errors = [201]
    one.start((gpu.stream,), CPU)
    assert len(Launcher.seen) == 2


@pytest.mark.parametrize("errors", [[201, 201], [0, 700]])
def test_what_the_driver_refuses_is_an_error_that_says_what_to_do(gpu, errors):
    args = given()
    both = joined([Launch(by_triton(*args), (1,), (0, 0, *args[2:], 16))] * 2)
    gpu.errors = errors
    words = rf"could not start a kernel \(CUDA error {errors[1]}\).* from a checkpoint.*_BLOCKING=1"
    with pytest.raises(RuntimeError, match=words):
        both.start((gpu.stream,), CPU)


def test_a_newer_triton_is_not_known():
    assert launches._lack_of_version((3, 5)) is None
    assert launches._lack_of_version((3, 8)) is None
    words = r"Triton is 4\.0, and .* up to 3\.8\. Update the package\."
    assert re.fullmatch(words, launches._lack_of_version((4, 0)))


def test_without_the_module_in_cpp_it_is_said_how_to_build_it(monkeypatch):
    package = launches.__package__
    monkeypatch.setitem(sys.modules, f"{package}._launches", None)
    monkeypatch.delattr(f"{package}._launches")
    spec = importlib.util.spec_from_file_location(f"{package}.another", launches.__file__)
    another = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(another)
    assert re.search(r"are missing: no C\+\+ compiler .* Install g\+\+", another._LACK)


ONE_LAUNCH_THAT_IS_NOT_THERE = bytes(8) + b"\x01" + bytes(23)


@pytest.mark.parametrize("program", [b"", bytes(31), bytes(33), ONE_LAUNCH_THAT_IS_NOT_THERE])
def test_bytes_that_are_no_program_are_refused(program):
    with pytest.raises(ValueError, match="do not fit together"):
        launches._launches.start(program, (0,))


def test_a_value_that_is_missing_is_refused(gpu):
    args = given()
    place = Launch(by_triton(*args), (1,), (Place(1, 0), 0, *args[2:], 16))
    with pytest.raises(ValueError, match="do not fit together"):
        launches._launches.start(joined([place]).packed, (0,))
