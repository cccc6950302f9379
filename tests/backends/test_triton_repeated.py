"""Launches of a loop: real compiled kernels, and a launcher that only takes notes."""

from contextlib import nullcontext

import pytest
import torch

from geoopt_projunn.backends.triton import support

if (lack := support.lack_of_triton()) is not None:
    pytest.skip(f"the kernels cannot be used: {lack}", allow_module_level=True)

import triton
import triton.language as tl

from geoopt_projunn.backends.triton import launches, repeated
from geoopt_projunn.backends.triton.repeated import Repeated

from ._no_gpu import Launcher, no_gpu

if support.INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)
if launches._LACK is not None:
    pytest.skip(f"nothing is replayed: {launches._LACK}", allow_module_level=True)

DTYPES = (torch.float32, torch.float64, torch.complex64)


@triton.jit
def kernel(z, h, out, stride, count, SIZE: tl.constexpr, SHIFT: tl.constexpr = 2):
    """Read and write all that it is given."""
    at = tl.arange(0, SIZE)
    value = tl.load(z + at, mask=at < count) + tl.load(h + at * stride, mask=at < count)
    tl.store(out + at, value + SHIFT, mask=at < count)


@pytest.fixture
def gpu(monkeypatch):
    with no_gpu(monkeypatch, kernel) as own:
        yield own


def share(z, h):
    return -(-z.numel() // 64), (h.stride(0), z.numel())


def loop(out):
    return Repeated(kernel, share, (out,), SIZE=16, num_warps=2)


def by_triton(z, h, out):
    """Return what Triton launches itself."""
    count, integers = share(z, h)
    start = len(Launcher.seen)
    entries = [torch.view_as_real(t) if t.is_complex() else t for t in (z, h, out)]
    kernel[(count,)](*entries, *integers, SIZE=16, num_warps=2)
    return Launcher.seen[start:]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [3, 16], ids=str)
def test_each_step_launches_what_triton_would_whatever_its_alignment_and_size(gpu, dtype, n):
    sizes = [9, 9, 9, 9, 9, 8, 8, 5, 5, 4, 1, 1, 9, 16]
    z, h = (torch.zeros(sum(sizes), n, dtype=dtype).split(sizes) for _ in range(2))
    wide = torch.zeros(sum(sizes), 2 * n, dtype=dtype)[:, :n].split(sizes)
    out = torch.zeros(9, n, dtype=dtype)
    own, bound = loop(out), 0
    for _ in range(2):
        for others in (h, wide, reversed(h)):
            for step in zip(z, others, strict=True):
                before, start = gpu.bound, len(Launcher.seen)
                own(*step)
                launched = Launcher.seen[start:]
                bound += gpu.bound - before
                assert launched == by_triton(*step, out)
                assert len(launched) == 1
    assert bound == len({seen.function for seen in Launcher.seen}) < len(sizes)
    # In a loop of its own Triton compiles nothing anew.
    loaded = gpu.loaded
    loop(out)(z[0], h[0])
    assert gpu.loaded == loaded


def test_equal_steps_are_bound_once_and_run_on_the_stream_of_their_loop(gpu):
    z, h = (torch.zeros(20, 4, 16).unbind(0) for _ in range(2))
    for stream in (7, 9):
        gpu.stream, gpu.bound = stream, 0
        own, start = loop(z[0]), len(Launcher.seen)
        for step in zip(z, h, strict=True):
            own(*step)
        assert gpu.bound == 1
        assert {seen.stream for seen in Launcher.seen[start:]} == {stream}
        assert len(Launcher.seen[start:]) == 20


def test_an_empty_step_launches_nothing_each_time(gpu):
    z, h = torch.zeros(2, 0, 16)
    own = loop(torch.zeros(4, 16))
    for _ in range(3):
        own(z, h)
    assert gpu.bound == 1
    assert Launcher.seen == []


def test_a_loop_takes_tensors_of_several_dtypes(gpu):
    steps = [[torch.zeros(4, 16, dtype=dtype) for _ in range(2)] for dtype in DTYPES]
    out = torch.zeros(4, 16)
    own = loop(out)
    for step in (*steps, *steps):
        own(*step)
        assert Launcher.seen[-1:] == by_triton(*step, out)


@pytest.mark.parametrize("why", ["hooks", "unknown"])
def test_what_cannot_be_replayed_is_bound_each_time(gpu, monkeypatch, why):
    if why == "hooks":
        monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda metadata: None)
    else:
        monkeypatch.setattr(repeated, "can_join", lambda compiled: False)
    z, h, out = torch.zeros(3, 4, 16)
    own = loop(out)
    for count in (1, 2, 3):
        own(z, h)
        assert gpu.bound == count


@pytest.mark.parametrize("is_elsewhere", [False, True])
def test_a_launch_is_on_the_device_of_its_tensors(gpu, is_elsewhere, monkeypatch):
    entered = []
    z, h, out = torch.zeros(3, 4, 16)
    own = loop(out)
    own(z, h)

    def entering(device):
        entered.append(device)
        return nullcontext()

    monkeypatch.setattr(torch.cuda, "device", entering)
    monkeypatch.setattr(repeated, "_is_elsewhere", lambda device: is_elsewhere)
    for _ in range(2):
        own(z, h)
    assert entered == [out.device] * 2 * is_elsewhere
    assert len(Launcher.seen) == 3


def test_a_device_is_elsewhere_if_it_is_not_the_current_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    devices = map(torch.device, ("cpu", "cuda:0", "cuda:1"))
    assert list(map(repeated._is_elsewhere, devices)) == [False, False, True]
