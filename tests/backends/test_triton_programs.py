"""Launches that are replayed: real compiled kernels, and a launcher that only takes notes."""

import gc
import weakref
from functools import partial

import pytest
import torch

from geoopt_projunn.backends.triton import support

if (lack := support.lack_of_triton()) is not None:
    pytest.skip(f"the kernels cannot be used: {lack}", allow_module_level=True)

import triton
import triton.language as tl
from triton.runtime.jit import mangle_type

from geoopt_projunn.backends.triton import backend, launches, programs, step
from geoopt_projunn.backends.triton.launching import bits, carve, launch

from ._no_gpu import Launcher, no_gpu

if support.INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)
if launches._LACK is not None:
    pytest.skip(f"nothing is replayed: {launches._LACK}", allow_module_level=True)


def test_kernels_know_all_that_they_are_chosen_for():
    """What is chosen without Triton, and what kernels are given, are in two tables."""
    for names, numbers in (
        (backend._SKETCHES, step._SKETCHES),
        (backend._RETRACTIONS, step._RETRACTIONS),
        (backend._NORMALIZATIONS[1:], step._NORMALIZATIONS),
    ):
        assert set(names) == set(numbers)


@triton.jit
def first_kernel(
    x, y, out, n, SIZE: tl.constexpr, number, OVERLAPS: tl.constexpr, SHIFT: tl.constexpr = 2
):
    """Read and write all that it is given."""
    at = tl.arange(0, SIZE)
    value = tl.load(x + at, mask=at < n) + tl.load(y + at, mask=at < n)
    tl.store(out + at, value + number + SHIFT, mask=at < n)


@triton.jit
def second_kernel(out, x, n, SIZE: tl.constexpr, OVERLAPS: tl.constexpr):
    """Read what the first one has written."""
    at = tl.arange(0, SIZE)
    tl.store(x + at, tl.load(out + at, mask=at < n), mask=at < n)


@pytest.fixture
def gpu(monkeypatch):
    with no_gpu(monkeypatch, first_kernel, second_kernel) as own:
        monkeypatch.setattr(programs, "_programs", {})
        yield own


def take(x, y, number=0.1, n=None, key=(), overlaps=False):
    """Take a step of two kernels; return what was launched."""
    n = len(x) if n is None else n
    start = len(Launcher.seen)

    def both(numbers):
        memory = carve({"unused": 40, "out": n}, 1, x.dtype, x.device)
        (own,) = numbers
        out = memory["out"]
        launch(
            first_kernel,
            (2,),
            x,
            y,
            out,
            n,
            number=bits(own),
            SIZE=16,
            OVERLAPS=overlaps,
            num_warps=2,
        )
        alike = {"SIZE": 16, "OVERLAPS": overlaps}
        launch(second_kernel, (1, 3), out, x, n, starts_early=overlaps, **alike)

    programs.run((n, *key), [x, y], [number], both)
    return Launcher.seen[start:]


def tensors(dtype=torch.float32, offset=0):
    return [torch.zeros(64, dtype=dtype)[offset : offset + 20] for _ in range(2)]


def plain(monkeypatch, *args, **kwargs):
    """Launch as Triton does it."""
    with monkeypatch.context() as context:
        context.setattr(programs, "_programs", {})
        return take(*args, **kwargs)


def test_the_second_step_launches_what_triton_would_without_binding_anything(gpu, monkeypatch):
    take(*tensors())
    assert gpu.bound == 2
    gpu.stream, (x, y) = 9, tensors()
    found = take(x, y, number=0.7)
    assert gpu.bound == 2
    expected = plain(monkeypatch, x, y, number=0.7)
    assert gpu.bound == 4
    # They differ in where they work.
    out = [seen[0].args[2] for seen in (found, expected)]
    assert out[0] % 16 == out[1] % 16 == 0
    for own, theirs in zip(found, expected, strict=True):
        assert own[:-1] == theirs[:-1]
        for one, other in zip(own.args, theirs.args, strict=True):
            assert one == other or (one, other) == tuple(out)
    assert [(*own[:2], own.threads) for own in found] == [((2, 1, 1), 9, 64), ((1, 3, 1), 9, 128)]
    assert found[0].args == [x.data_ptr(), y.data_ptr(), out[0], len(x), bits(0.7)]


@pytest.mark.parametrize("overlaps", [False, True])
def test_launches_overlap_where_they_shall_also_when_replayed(gpu, overlaps):
    found = [*take(*tensors(), overlaps=overlaps), *take(*tensors(), overlaps=overlaps)]
    assert gpu.bound == 2
    assert [launched.overlaps for launched in found] == [False, overlaps] * 2


@pytest.mark.parametrize(
    ("change", "is_special"),
    [
        ({"offset": 1}, True),
        ({"offset": 4}, False),
        ({"dtype": torch.float64}, True),
        # Of float64; 1 and 2**-1074 are one as integers, and 0.0 has 32 bits.
        ({"number": 2.0}, True),
        ({"number": 5e-324}, True),
        ({"number": 0.0}, True),
        ({"number": -0.3}, False),
        ({"n": 16}, True),
        ({"n": 1}, True),
    ],
)
def test_where_triton_compiles_anew_nothing_is_replayed(gpu, monkeypatch, change, is_special):
    def step(take, **change):
        kinds = {name: change.pop(name) for name in ("offset", "dtype") if name in change}
        return take(*tensors(**kinds), **change)

    functions = [launched.function for launched in step(take)]
    bound = gpu.bound
    found = [launched.function for launched in step(take, **change)]
    assert (gpu.bound > bound) == is_special
    expected = step(partial(plain, monkeypatch), **change)
    assert found == [launched.function for launched in expected]
    assert (found != functions) == is_special
    # And back.
    bound = gpu.bound
    assert [launched.function for launched in step(take)] == functions
    assert [launched.function for launched in step(take, **change)] == found
    assert gpu.bound == bound


@pytest.mark.skipif(support.version() < (3, 6), reason="Triton 3.5 does not tell of integers")
def test_all_that_triton_specializes_is_part_of_the_key():
    numbers = [-(2**63), -(2**31) - 1, -(2**31), -16, -1, 0, 1, 2, 16, 17, 2**31 - 1, 2**31]
    numbers += [2**31 + 1, 2**32, 2**62 + 1, 2**63 - 1]
    for one in numbers:
        for other in numbers:
            if mangle_type(one, True) != mangle_type(other, True):
                assert programs.specialized(one) != programs.specialized(other), (one, other)


def test_kernels_that_triton_has_forgotten_are_still_there(gpu):
    """From 3.8 on Triton unloads a kernel that nobody has any more."""
    take(*tensors())
    kernels = []
    for kernel in (first_kernel, second_kernel):
        for cache, *_ in kernel.device_caches.values():
            kernels += map(weakref.ref, cache.values())
            cache.clear()
    assert len(kernels) == 2
    gc.collect()
    assert all(kernel() is not None for kernel in kernels)
    programs._programs.clear()
    gc.collect()
    assert all(kernel() is None for kernel in kernels)


@pytest.mark.parametrize("why", ["hooks", "shared", "unknown"])
def test_what_cannot_be_replayed_is_bound_each_time(gpu, monkeypatch, why):
    x, y = tensors()
    if why == "hooks":
        monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda metadata: None)
    elif why == "shared":
        y = x[:16]
    else:
        monkeypatch.setattr(programs.Recorder, "allocated", lambda self, memory: None)
    for count in (2, 4, 6):
        take(x, y)
        assert gpu.bound == count


def test_steps_of_another_kind_are_programs_of_their_own(gpu):
    x, y = tensors()
    for key in ("a", "b"):
        before = gpu.bound
        take(x, y, key=key)
        take(x, y, key=key)
        assert gpu.bound == before + 2


def test_programs_are_not_kept_without_end(gpu, monkeypatch):
    monkeypatch.setattr(programs, "_MOST_PROGRAMS", 3)
    x, y = tensors()
    for key in "abcde":
        take(x, y, key=key)
        assert len(programs._programs) <= 3
    bound = gpu.bound
    take(x, y, key="e")
    assert gpu.bound == bound


def test_where_nothing_is_joined_triton_launches_and_a_warning_says_so_once(gpu, monkeypatch):
    monkeypatch.setattr(launches, "_LACK", "they are missing. Build them.")
    launches._warn_of_lack.cache_clear()
    with pytest.warns(UserWarning, match=r"slow to start.* because they are missing\. Build"):
        take(*tensors())
    take(*tensors())
    assert gpu.bound == 4
