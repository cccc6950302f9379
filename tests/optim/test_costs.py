"""Work, memory and waiting of one step, counted and not timed."""

import sys

import geoopt
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, bmm_flop

from geoopt_projunn import LowRankUnitary, ProjUNNRiemannianAdam, ProjUNNRiemannianSGD, backends

from ._helpers import OPTIMIZERS, RETRACTIONS, SKETCHES, read_as_from_a_gpu

SETTINGS = {
    "sgd": (ProjUNNRiemannianSGD, {}),
    "momentum": (ProjUNNRiemannianSGD, {"momentum": 0.9}),
    "feedback": (ProjUNNRiemannianSGD, {"momentum": 0.9, "error_feedback": 0.99}),
    "adam": (ProjUNNRiemannianAdam, {"second_moment": "elementwise"}),
    "scalar": (ProjUNNRiemannianAdam, {"second_moment": "scalar", "amsgrad": True}),
}
each_setting = pytest.mark.parametrize(("kind", "options"), SETTINGS.values(), ids=SETTINGS.keys())

STEPS = ("turn_", "step_")
# Each waits for a GPU, or costs O(n³) on a matrix of size n.
FORBIDDEN = {
    "aten::_linalg_check_errors",
    "aten::_linalg_eigh",
    "aten::_linalg_svd",
    "aten::_linalg_eigvals",
    "aten::linalg_eig",
    "aten::linalg_matrix_exp",
    "aten::linalg_lu",
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::equal",
    "aten::is_nonzero",
}


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    read_as_from_a_gpu(monkeypatch)


def update_flops(self_shape, left_shape, right_shape, *_, **__):
    return bmm_flop(left_shape, right_shape)


class FlopCounter(FlopCounterMode):
    """Counts the in-place update as well, which torch's own counter overlooks."""

    def __init__(self):
        super().__init__(display=False, custom_mapping={torch.ops.aten.baddbmm_: update_flops})


class Watch(TorchDispatchMode):
    """Record the operations of a step, and those that join two devices."""

    def __init__(self):
        super().__init__()
        self.names = set()
        self.mixed = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.names.add(name)
        out = func(*args, **(kwargs or {}))
        tensors = torch.utils._pytree.tree_leaves((args, kwargs, out))
        devices = {x.device.type for x in tensors if isinstance(x, torch.Tensor)}
        if len(devices) > 1:
            self.mixed.add(name)
        return out


def ready(kind, options, *shape, device="meta", dtype=torch.float32, lr=0.1, **manifold):
    """Build an optimizer whose parameter has taken its first step."""
    if device == "meta":
        data, grad = (torch.empty(shape, dtype=dtype, device=device) for _ in range(2))
    else:
        data = torch.eye(shape[-1], dtype=dtype).expand(shape).contiguous()
        grad = torch.randn(shape, dtype=dtype)
    p = geoopt.ManifoldParameter(data, manifold=LowRankUnitary(**manifold))
    p.grad = grad
    optimizer = kind([p], lr=lr, **options)
    optimizer.step()
    return optimizer


def flops(optimizer):
    with FlopCounter() as counter:
        optimizer.step()
    return counter.get_total_flops()


def assert_linear_in_k_n_squared(kind, options, k, **manifold):
    work = [
        flops(ready(kind, options, n, n, k=k, **manifold)) / (k * n * n)
        for n in (1024, 8192, 65536)
    ]
    assert max(work) < 1.1 * min(work)
    assert max(work) < 40


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("retraction", RETRACTIONS)
@each_setting
def test_a_step_costs_a_constant_times_k_n_squared(kind, options, retraction, k):
    assert_linear_in_k_n_squared(kind, options, k, retraction=retraction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("sketch", SKETCHES)
def test_every_sketch_costs_a_constant_times_k_n_squared(sketch, k, dtype):
    assert_linear_in_k_n_squared(ProjUNNRiemannianSGD, {}, k, sketch=sketch, dtype=dtype)


def test_the_sweep_costs_two_passes():
    n = 8192
    without, one, four = (
        flops(ready(ProjUNNRiemannianSGD, {}, n, n, sweep=sweep)) for sweep in (0, 1, 4)
    )
    assert one - without == pytest.approx(4 * n * n, rel=0.01)
    assert four - without == pytest.approx(16 * n * n, rel=0.01)


def test_a_batch_costs_the_sum_of_its_matrices():
    one, five = (flops(ready(ProjUNNRiemannianSGD, {}, *batch, 256, 256)) for batch in ((), (5,)))
    assert five == 5 * one


def test_the_counter_sees_cubic_work():
    """With k=None the work over n² grows with n: a cubic step would not pass unnoticed."""
    small, large = (flops(ready(ProjUNNRiemannianSGD, {}, n, n, k=None)) for n in (512, 1024))
    assert large > 7 * small


def assert_never_waits(optimizer):
    with Watch() as watch:
        optimizer.step()
    stepped = {"aten::bmm"} | {f"geoopt_projunn::{name}" for name in STEPS}
    assert watch.names & stepped
    assert not watch.names & FORBIDDEN
    assert not watch.mixed


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("retraction", RETRACTIONS)
@each_setting
def test_no_operation_waits_for_the_device(kind, options, retraction, k, device):
    shape = (3, 16, 16)
    assert_never_waits(ready(kind, options, *shape, device=device, k=k, retraction=retraction))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_no_sketch_waits_for_the_device(kind, sketch, dtype, device):
    assert_never_waits(ready(kind, {}, 16, 16, device=device, dtype=dtype, k=2, sketch=sketch))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_no_operation_of_several_parameters_and_groups_waits_for_the_device(kind):
    def parameter(n, k):
        manifold = LowRankUnitary(k=k)
        p = geoopt.ManifoldParameter(torch.empty(n, n, device="meta"), manifold=manifold)
        p.grad = torch.empty(n, n, device="meta")
        return p

    groups = [
        {"params": [parameter(16, 1), parameter(16, 1), parameter(300, 1), parameter(300, 1)]},
        {"params": [parameter(16, 2), parameter(24, 1)], "lr": 0.5},
    ]
    optimizer = kind(groups, lr=0.1)
    optimizer.step()
    assert_never_waits(optimizer)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_learning_rate_in_a_tensor_is_not_read(kind):
    assert_never_waits(ready(kind, {}, 16, 16, lr=torch.tensor(0.1, device="meta")))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_first_step_on_meta_needs_no_data_and_creates_state_there(kind):
    optimizer = ready(kind, {}, 3, 64, 64)
    (state,) = optimizer.state.values()
    assert {value.device.type for value in state.values()} == {"meta"}


def allocations(step):
    """Sizes of all blocks of memory that a step asks torch for; 0 among them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        step()
    events = profile.profiler.kineto_results.events()
    return [0, *(event.nbytes() for event in events if event.name() == "[memory]")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("retraction", RETRACTIONS)
def test_sgd_creates_nothing_of_the_size_of_the_matrix(retraction, sketch, k, dtype):
    n = 512
    optimizer = ready(
        ProjUNNRiemannianSGD,
        {},
        n,
        n,
        device="cpu",
        dtype=dtype,
        k=k,
        retraction=retraction,
        sketch=sketch,
    )
    # A basis of 2k rows in double precision; column norms go through a sixteenth of the
    # gradient at a time, squared in double precision.
    part = n * n // 16 * 8 if sketch == "column" else 0
    most = max(2 * k * n * 2 * dtype.itemsize, part)
    assert max(allocations(optimizer.step)) <= most
    with backends.use("reference"):
        assert 0 < max(allocations(optimizer.step)) <= most


@pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
@pytest.mark.parametrize("name", ["momentum", "adam", "scalar"])
def test_what_is_remembered_needs_no_second_copy(name):
    n = 2048
    kind, options = SETTINGS[name]
    optimizer = ready(kind, options, n, n, device="cpu")
    assert max(allocations(optimizer.step)) <= 4 * n * 8


def test_the_profiler_sees_a_copy_of_the_matrix():
    x = torch.randn(512, 512)
    assert max(allocations(lambda: x.mT.contiguous())) == 512 * 512 * 4


@pytest.mark.parametrize(
    ("name", "most"), [("momentum", 3), ("feedback", 3), ("adam", 9), ("scalar", 5)]
)
def test_memory_beside_the_state_is_a_few_matrices(name, most):
    n = 512
    kind, options = SETTINGS[name]
    with backends.use("reference"):
        optimizer = ready(kind, options, n, n, device="cpu")
        large = [size for size in allocations(optimizer.step) if size >= n * n * 4]
    assert 0 < len(large) <= most


@pytest.mark.parametrize(
    ("name", "matrices"), [("sgd", 0), ("momentum", 1), ("feedback", 1), ("adam", 2)]
)
def test_state_holds_the_promised_number_of_matrices(name, matrices):
    n = 256
    kind, options = SETTINGS[name]
    (state,) = ready(kind, options, n, n, device="cpu").state.values()
    size = sum(value.numel() * value.element_size() for value in state.values())
    assert matrices * n * n * 4 <= size < matrices * n * n * 4 + 2 * n * 4


def calls(optimizer):
    """How many functions a step calls in Python, those in C among them."""
    count = 0

    def note(frame, event, _):
        nonlocal count
        count += event in ("call", "c_call")

    optimizer.step()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        optimizer.step()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.skipif("cpu" not in backends.available(), reason="the kernels were not built")
@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "scalar"])
def test_one_more_small_parameter_takes_the_host_few_calls(name):
    kind, options = SETTINGS[name]
    manifold = LowRankUnitary(k=1)

    def optimizer(count):
        params = [geoopt.ManifoldParameter(torch.eye(8), manifold=manifold) for _ in range(count)]
        for p in params:
            p.grad = torch.randn(8, 8)
        return kind(params, lr=0.1, **options)

    one, many = calls(optimizer(2)), calls(optimizer(18))
    assert (many - one) / 16 <= 24
