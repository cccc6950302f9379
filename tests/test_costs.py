"""Costs are counted, not timed: on tensors without data, at any size."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import LowRankUnitary
from geoopt_projunn.rotation import Rotation
from geoopt_projunn.sketches import SKETCHES as SKETCH_TABLE
from tests._matrices import RETRACTIONS, SKETCHES, tangent_at, unitary
from tests._modes import Recorder

STEPS = {
    "egrad2rgrad": lambda m, x, u, v: m.egrad2rgrad(x, u),
    "retr": lambda m, x, u, v: m.retr(x, u),
    "retr_transp": lambda m, x, u, v: m.retr_transp(x, u, v),
    "transp_follow_retr": lambda m, x, u, v: m.transp_follow_retr(x, u, v),
}

steps = pytest.mark.parametrize("step", STEPS)
retractions = pytest.mark.parametrize("retraction", RETRACTIONS)
sketches = pytest.mark.parametrize("sketch", SKETCHES)
ranks = pytest.mark.parametrize("k", [1, 4])
kinds = pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])


def without_data(*size, count=3, dtype=torch.float32):
    return [torch.empty(*size, dtype=dtype, device="meta") for _ in range(count)]


def flops(function, *arguments):
    with FlopCounterMode(display=False) as counter:
        function(*arguments)
    return counter.get_total_flops()


def assert_kn2(step, manifold, dtype):
    per_kn2 = [
        flops(STEPS[step], manifold, *without_data(n, n, dtype=dtype)) / (manifold.k * n**2)
        for n in (256, 2048, 65536)
    ]
    assert max(per_kn2) < 1.1 * min(per_kn2)
    assert max(per_kn2) < 80


@steps
@retractions
@ranks
@kinds
def test_a_step_costs_kn2_flops_at_any_size_with_every_retraction(step, retraction, k, dtype):
    assert_kn2(step, LowRankUnitary(k, retraction=retraction), dtype)


@steps
@sketches
@ranks
def test_a_step_costs_kn2_flops_at_any_size_with_every_sketch(step, sketch, k):
    assert_kn2(step, LowRankUnitary(k, sketch=sketch), torch.float32)


def test_the_counter_would_see_an_n3_step():
    manifold = LowRankUnitary(None)
    per_n2 = [flops(STEPS["retr"], manifold, *without_data(n, n)) / n**2 for n in (256, 1024)]
    assert per_n2[1] > 3.9 * per_n2[0]


@pytest.mark.parametrize(("sketch", "passes"), [("tangent", 16), ("lsi", 6), ("column", 4)])
@ranks
def test_a_sketch_costs_what_its_documentation_says(sketch, passes, k):
    n = 16384
    x, d = without_data(1, n, n, count=2)
    counter = torch.empty(1, dtype=torch.int64, device="meta")
    counted = flops(SKETCH_TABLE[sketch], x, d, k, counter)
    assert counted == pytest.approx(passes * k * n**2, rel=0.02)


@pytest.mark.parametrize("r", [2, 8])
def test_a_rotation_costs_4rnp_flops(r):
    n, p = 16384, 4096
    (x,) = without_data(1, n, p, count=1)
    rotation = Rotation(
        torch.empty(1, r, n, device="meta"),
        torch.empty(1, r, r, dtype=torch.float64, device="meta"),
    )
    assert flops(rotation, x) == pytest.approx(4 * r * n * p, rel=0.01)


@steps
@retractions
@sketches
@pytest.mark.parametrize("k", [1, 2])
def test_a_step_waits_for_nothing(step, retraction, sketch, k):
    manifold = LowRankUnitary(k, retraction=retraction, sketch=sketch)
    x, v = unitary(2, 3, 16, 16), tangent_at(unitary(2, 3, 16, 16))
    for arguments in ((x, torch.randn_like(x), v), without_data(2, 3, 16, 16)):
        with Recorder() as recorder:
            STEPS[step](manifold, *arguments)
        assert not recorder.forbidden


@retractions
def test_a_full_rank_step_waits_for_nothing_either(retraction):
    manifold = LowRankUnitary(None, retraction=retraction)
    x, u = unitary(4, 4), torch.randn(4, 4, dtype=torch.float64)
    with Recorder() as recorder:
        manifold.retr(x, manifold.egrad2rgrad(x, u))
    assert not recorder.forbidden


def test_the_recorder_would_see_a_host_that_waits():
    with Recorder() as recorder:
        x = unitary(4, 4)
        float(x.sum())
        x[x > 0]
    assert recorder.forbidden >= {"_linalg_svd", "_local_scalar_dense", "nonzero"}


@steps
def test_a_step_creates_nothing_of_the_size_of_its_result_but_its_result(step):
    n = 128
    x, u, v = unitary(n, n), torch.randn(n, n, dtype=torch.float64), torch.randn(n, n).double()
    with Recorder() as recorder:
        STEPS[step](LowRankUnitary(1), x, u, v)
    assert max(recorder.created) == n**2
    assert recorder.created.count(n**2) == (2 if step == "retr_transp" else 1)


@kinds
@pytest.mark.parametrize("n", [2, 16, 128])
def test_projx_of_a_point_costs_n2_flops_and_no_decomposition(dtype, n):
    manifold = LowRankUnitary()
    x = manifold.random(n, n, dtype=dtype).data
    with Recorder() as recorder:
        counted = flops(manifold.projx, x)
    assert counted <= 16 * n**2
    assert not {"_linalg_svd", "linalg_qr", "_linalg_eigh", "linalg_eig"} & recorder.operations


def test_projx_reads_one_value_back():
    # The one place where the host waits, apart from the exact methods.
    x = LowRankUnitary().random(8, 8).data
    with Recorder() as recorder:
        LowRankUnitary().projx(x)
    assert recorder.forbidden == {"_local_scalar_dense"}
