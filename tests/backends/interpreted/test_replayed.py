"""Steps whose launches are replayed are those that Triton binds, bit for bit."""

import copy

import pytest
import torch

from geoopt_projunn import ProjUNNRiemannianSGD, backends
from geoopt_projunn.backends.triton import programs
from tests._asserts import assert_bit_equal
from tests._triton import InterpretedAsCompiled, replay_interpreted
from tests.backends._cases import ADAM, RULES, SGD
from tests.backends._steps import parameters

F32, F64, C64, C128 = torch.float32, torch.float64, torch.complex64, torch.complex128


@pytest.fixture
def bound(monkeypatch):
    """Let interpreted kernels be replayed; return what is bound meanwhile."""
    names, launched = [], programs.Recorder.launched

    def noted(self, compiled, kernel, grid, args, options):
        names.append(kernel.__name__)
        launched(self, InterpretedAsCompiled(kernel, args), kernel, grid, args, options)

    monkeypatch.setattr(programs.Recorder, "launched", noted)
    replay_interpreted(monkeypatch, programs)
    monkeypatch.setattr(programs, "_programs", {})
    return names


def steps(p, kind, options, changes, *, replayed, seed=1):
    """Step a copy, with options that change; return the optimizer."""
    p = copy.deepcopy(p)
    optimizer = kind([p], **options)
    generator = torch.Generator().manual_seed(seed)
    # Of other addresses each time.
    kept = []
    for change in changes:
        if not replayed:
            programs._programs.clear()
        optimizer.param_groups[0].update(change)
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator) / p.shape[-1]
        kept.append(p.grad)
        with backends.use("triton"):
            optimizer.step()
    return optimizer


MANY, ONE = "many kernels", "one kernel"


@pytest.mark.parametrize(
    ("small", "rule", "dtype", "method", "shape", "changes", "launches"),
    [
        (MANY, "momentum", F64, "tangent, k = 3", (7, 7), [{}, {"dampening": 0.7}], 14),
        (MANY, "gradient", F32, "tangent", (7, 7), [{"lr": 0.1}, {"lr": 0.3}, {"lr": 0.2}], 14),
        (MANY, "nesterov", F64, "lsi", (6, 6), [{}, {"momentum": 0.8, "lr": 0.3}], 11),
        (MANY, "adam", C128, "tangent", (9, 5), [{}, {"eps": 0.1, "lr": 0.3}], 14),
        (ONE, "nesterov", F64, "lsi", (6, 6), [{}, {"momentum": 0.8, "lr": 0.3}], 1),
        (ONE, "scalar amsgrad", C64, "tangent", (2, 6, 6), [{}, {"betas": (0.7, 0.3)}], 1),
    ],
    indirect=["small"],
)
@pytest.mark.usefixtures("small")
def test_steps_are_bound_once_and_replayed_bit_for_bit(
    bound, rule, dtype, method, shape, changes, launches
):
    (p,) = parameters(1, shape, dtype, method)
    kind, options = RULES[rule]
    expected = steps(p, kind, options, changes, replayed=False)
    of_all = len(bound)
    programs._programs.clear()
    bound.clear()
    actual = steps(p, kind, options, changes, replayed=True)
    assert len(bound) == of_all // len(changes) == launches
    assert_same(actual, expected)


def assert_same(actual, expected):
    (p,), (q,) = (optimizer.param_groups[0]["params"] for optimizer in (actual, expected))
    assert_bit_equal(p.detach(), q.detach())
    assert actual.state[p].keys() == expected.state[q].keys()
    for name, value in actual.state[p].items():
        assert_bit_equal(value, expected.state[q][name])


@pytest.mark.parametrize(
    ("kind", "changes", "programs_needed"),
    [
        # A rate on the device is read there, whatever it is.
        (SGD, [{"lr": torch.tensor(0.1)}, {"lr": torch.tensor(0.4)}], 1),
        (ADAM, [{}, {"lr": torch.tensor(0.1)}, {"lr": torch.tensor(0.1, dtype=F64)}], 3),
        # Where a plane might turn further than half a turn kernels look for it.
        (SGD, [{"normalize": "angle", "lr": 0.3}, {"lr": 9.1}, {"lr": 0.4}, {"lr": 8.3}], 2),
        (SGD, [{}, {"normalize": "spectral"}, {"normalize": None}], 2),
        (SGD, [{}, {"momentum": 0.9}, {"nesterov": True}], 3),
        (SGD, [{"maximize": True}, {"maximize": False}], 1),
    ],
)
@pytest.mark.filterwarnings("ignore:With normalize=.* may stop at half a turn")
def test_what_other_options_launch_is_another_program(bound, kind, changes, programs_needed):
    (p,) = parameters(1, (6, 6), F64, "tangent")
    expected = steps(p, kind, {"lr": 0.1}, changes, replayed=False)
    programs._programs.clear()
    actual = steps(p, kind, {"lr": 0.1}, changes, replayed=True)
    assert len(programs._programs) == programs_needed
    assert_same(actual, expected)


def test_rules_that_keep_tensors_of_the_same_dtypes_are_programs_of_their_own(bound):
    (p,) = parameters(1, (6, 6), F64, "tangent")
    options = [{"lr": 0.1, "second_moment": name} for name in ("elementwise", "scalar")]
    expected = [steps(p, ADAM, own, [{}], replayed=False) for own in options]
    programs._programs.clear()
    actual = [steps(p, ADAM, own, [{}], replayed=True) for own in options]
    assert len(programs._programs) == 2
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)


def test_what_lies_elsewhere_is_stepped_there(bound):
    """A copy of a matrix that is not contiguous, and memory that is not aligned."""
    (p,) = parameters(1, (6, 6), F64, "tangent")
    memory = torch.zeros(60, dtype=F64)
    points = [p.detach().clone(), p.detach().mT.contiguous().mT, memory[1:37].view(6, 6)]
    points[2].copy_(p.detach())
    grad = torch.randn(6, 6, dtype=F64)
    for x in points + points:
        own = copy.deepcopy(p)
        own.data = x.clone() if x.is_contiguous() and x.storage_offset() == 0 else x
        own.grad = grad.clone()
        optimizer = ProjUNNRiemannianSGD([own], lr=0.1)
        with backends.use("triton"):
            x.copy_(p.detach())
            optimizer.step()
        if x is points[0]:
            expected = own.detach().clone()
        assert_bit_equal(own.detach(), expected)
    assert len(programs._programs) == 2
