"""Steps of small matrices by one kernel that is made of others."""

import linecache

import pytest
import torch

from geoopt_projunn.backends.triton import support

if (lack := support.lack_of_triton()) is not None:
    pytest.skip(f"the kernels cannot be used: {lack}", allow_module_level=True)
if support.INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

from geoopt_projunn.backends.triton import launches as starting
from geoopt_projunn.backends.triton import programs
from geoopt_projunn.backends.triton import step as turning
from geoopt_projunn.backends.triton.whole_steps import Part, as_one

from ._ahead import RULES, launches, spec
from ._no_gpu import Launcher, no_gpu
from .test_triton_programs import first_kernel, second_kernel


def two(x, y, out, n):
    alike = {"SIZE": 16, "OVERLAPS": False}
    return [
        Part(first_kernel, (x, y, out, n), {**alike, "number": 3, "SHIFT": 4}),
        Part(second_kernel, (out, x, n), alike),
        Part(second_kernel, (out, y, n), alike),
    ]


def test_kernels_are_called_one_after_another_with_what_they_were_given():
    x, y, out = torch.zeros(3, 16).unbind()
    kernel, args = as_one(two(x, y, out, 7))
    assert [id(arg) for arg in args[:3]] == [id(x), id(y), id(out)]
    assert args[3:] == [7, 7, 7]
    assert kernel.src.splitlines() == [
        "def whole_step_kernel(x_1, x_2, out_2, n_0, n_1, n_2):",
        "    first_kernel(x_1, x_2, out_2, n_0, SIZE=16, OVERLAPS=False, number=3, SHIFT=4)",
        "    tl.debug_barrier()",
        "    second_kernel(out_2, x_1, n_1, SIZE=16, OVERLAPS=False)",
        "    tl.debug_barrier()",
        "    second_kernel(out_2, x_2, n_2, SIZE=16, OVERLAPS=False)",
    ]


def test_such_a_kernel_is_made_once():
    kernel, _ = as_one(two(*torch.zeros(3, 16).unbind(), 7))
    known = len(linecache.cache)
    again, _ = as_one(two(*torch.zeros(3, 16).unbind(), 9))
    other, _ = as_one(two(*torch.zeros(3, 16).unbind(), 9)[:2])
    assert kernel is again is not other
    assert len(linecache.cache) == known + 1


def test_kernels_that_are_launched_are_those_that_they_were():
    """What is called keeps its own registers; what is launched has nobody who calls it."""
    as_one(two(*torch.zeros(3, 16).unbind(), 7))
    assert not first_kernel.noinline


@pytest.mark.parametrize("rule", ["gradient", "scalar amsgrad"])
def test_bits_of_numbers_make_no_kernel_of_their_own(monkeypatch, rule):
    """A new learning rate would compile everything again."""
    (launch,) = launches(monkeypatch, rule, spec(1), (2, 8, 8), torch.float32)
    kept = launch.kernel.do_not_specialize
    assert {name.split("_")[0] for name in kept} == {
        "length", "first", "second", "third", "anywhere", "floor"
    }  # fmt: skip
    assert len(kept) == 6


@pytest.mark.skipif(starting._LACK is not None, reason=f"nothing is replayed: {starting._LACK}")
def test_the_second_step_is_one_launch_that_nobody_binds(monkeypatch):
    shape, how = (3, 8, 8), spec(1)
    with monkeypatch.context() as context:
        (launch,) = launches(context, "momentum", how, shape, torch.float32)
    monkeypatch.setattr(programs, "_programs", {})
    x, momentum = torch.zeros(shape), torch.zeros(shape)
    counters = {"step": torch.zeros(3, dtype=torch.int64), "skipped": torch.zeros(3)}
    group = {"lr": 0.1, "maximize": False}
    with no_gpu(monkeypatch, launch.kernel) as gpu:
        grads = [torch.zeros(shape) for _ in range(3)]
        for grad in grads:
            buffers = {**counters, "m": momentum}
            turning.take(x, grad, buffers, RULES["momentum"], how, group)
        assert gpu.bound == 1
        first, *others = Launcher.seen
    assert first.grid == (3, 1, 1)
    (of_x,), (of_grad,) = (
        [at for at, arg in enumerate(first.args) if arg == t.data_ptr()] for t in (x, momentum)
    )
    for grad, seen in zip(grads[1:], others, strict=True):
        assert seen.function == first.function
        assert seen.args[of_x] == x.data_ptr()
        assert seen.args[of_grad] == momentum.data_ptr()
        assert grad.data_ptr() in seen.args
        assert grads[0].data_ptr() not in seen.args
