"""Steps of a few coordinates: which rows they read, what they keep, what they cost."""

import geoopt
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from geoopt_projunn import LowRankStiefel, LowRankUnitary, ProjUNNRiemannianSGD
from geoopt_projunn.sketches.coordinates import chosen, coordinates
from tests._asserts import assert_bit_equal, assert_unitary, assert_within
from tests._matrices import DTYPES, exponential_reference, skewh, unitary, wide

pytestmark = pytest.mark.usefixtures("each_way")
dtypes = pytest.mark.parametrize("dtype", DTYPES)


def parameter(x, k, manifold=LowRankUnitary, **options):
    on = manifold(k, sketch="coordinates", **{"sweep": 0, **options})
    return geoopt.ManifoldParameter(x.clone(), manifold=on)


@dtypes
@pytest.mark.parametrize("k", [1, 3, 6])
def test_the_sketch_is_the_generator_on_its_coordinates(dtype, k):
    x, d = unitary(3, 12, 12, dtype=dtype), torch.randn(3, 12, 12, dtype=dtype)
    counter = torch.tensor([0, 5, 2**40])
    rows, core = coordinates(x, d, k, counter)
    index = chosen(x, k, counter)
    assert all(len(set(one.tolist())) == 2 * k for one in index)
    assert_bit_equal(rows, torch.eye(12, dtype=wide(dtype))[index])
    omega = skewh(d.to(wide(dtype)) @ x.to(wide(dtype)).mH)
    assert_within(core, rows @ omega @ rows.mH, 1e-13)


def test_all_coordinates_have_their_turn_alike():
    x = unitary(1, 10, 10).expand(5000, -1, -1)
    counts = chosen(x, 2, torch.arange(5000)).flatten().bincount(minlength=10)
    assert counts.min() > 1800
    assert counts.max() < 2200


@dtypes
@pytest.mark.parametrize("layout", [torch.clone, lambda x: x.mT.contiguous().mT])
@pytest.mark.parametrize("normalize", [None, "angle"])
def test_a_step_turns_its_rows_and_reads_no_others(dtype, layout, normalize):
    x, d = unitary(2, 12, 12, dtype=dtype), torch.randn(2, 12, 12, dtype=dtype)
    index = chosen(x, 2, torch.zeros(2, dtype=torch.int64))
    p = parameter(layout(x), 2)
    # What is not finite elsewhere is not seen.
    p.grad = torch.full_like(d, torch.nan)
    for grad, given, some in zip(p.grad, d, index, strict=True):
        grad[some] = given[some]
    optimizer = ProjUNNRiemannianSGD([p], lr=0.3, normalize=normalize)
    optimizer.step()
    assert optimizer.skipped_steps == 0
    for before, after, given, some in zip(x, p.detach(), d, index, strict=True):
        core = skewh((given[some] @ before[some].mH).to(wide(dtype)))
        if normalize:
            core = core * 2 / torch.linalg.matrix_norm(core)
        expected = before.clone()
        expected[some] = (exponential_reference(-0.3 * core) @ before[some].to(core.dtype)).to(
            dtype
        )
        assert_within(after, expected, 1e3 * torch.finfo(dtype).eps)
        others = [i for i in range(12) if i not in some.tolist()]
        assert_bit_equal(after[others], before[others])


@pytest.mark.filterwarnings("ignore:A step of a parameter .* was skipped")
def test_what_is_not_finite_in_its_rows_leaves_a_matrix_as_it_is():
    x = unitary(2, 6, 6)
    p = parameter(x, 3)
    p.grad = torch.randn(2, 6, 6, dtype=torch.float64)
    p.grad[1, 2, 3] = torch.inf
    optimizer = ProjUNNRiemannianSGD([p], lr=0.1)
    optimizer.step()
    assert_bit_equal(p.detach()[1], x[1])
    assert not torch.equal(p.detach()[0], x[0])
    assert optimizer.skipped_steps == 1


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"normalize": "angle"}])
@pytest.mark.parametrize("sweep", [0, 1])
def test_many_steps_descend_and_stay_on_the_manifold(options, sweep):
    target = unitary(8, 8, dtype=torch.float32)
    p = parameter(unitary(8, 8, dtype=torch.float32), 1, sweep=sweep)
    lr = 0.1 if "momentum" in options else 0.3 if "normalize" in options else 1.0
    optimizer = ProjUNNRiemannianSGD([p], lr=lr, **options)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 1000)
    start = torch.linalg.matrix_norm(p.detach() - target)
    for _ in range(1000):
        p.grad = p.detach() - target
        optimizer.step()
        schedule.step()
    assert torch.linalg.matrix_norm(p.detach() - target) < 0.1 * start
    assert_unitary(p.detach(), 300)


@dtypes
@pytest.mark.parametrize("momentum_space", ["ambient", "tangent"])
def test_without_the_sweep_steps_are_the_same_to_rounding(dtype, momentum_space):
    x, grads = unitary(8, 8, dtype=dtype), torch.randn(3, 8, 8, dtype=dtype)
    ends = []
    for sweep in (0, 1):
        p = parameter(x, 2, sweep=sweep)
        options = {"momentum": 0.9, "momentum_space": momentum_space}
        optimizer = ProjUNNRiemannianSGD([p], lr=0.1, **options)
        for grad in grads:
            p.grad = grad
            optimizer.step()
        ends.append(p.detach())
    assert_within(*ends, 300 * torch.finfo(dtype).eps)


def test_rectangles_step_too():
    manifold = LowRankStiefel(2, sketch="coordinates", sweep=0)
    p = geoopt.ManifoldParameter(manifold.random(9, 4), manifold=manifold)
    start = p.detach().clone()
    p.grad = torch.randn(9, 4)
    ProjUNNRiemannianSGD([p], lr=0.1).step()
    assert not torch.equal(p.detach(), start)
    assert_unitary(p.detach())


def test_a_normal_gradient_moves_nothing_in_radians():
    x = unitary(12, 12, dtype=torch.float32)
    noise, p = torch.randn(12, 12), parameter(x, 3)
    p.grad = (noise + noise.mT) @ x
    ProjUNNRiemannianSGD([p], lr=0.3, normalize="angle").step()
    assert_bit_equal(p.detach(), x)


@pytest.mark.parametrize("k", [1, 4])
def test_a_step_costs_a_constant_times_k_squared_n(k):
    work = []
    for n in (1024, 8192, 65536):
        p = parameter(torch.empty(n, n, device="meta"), k)
        p.grad = torch.empty(n, n, device="meta")
        optimizer = ProjUNNRiemannianSGD([p], lr=0.1)
        optimizer.step()
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
        work.append(counter.get_total_flops() / (k * k * n))
    assert max(work) < 20
    assert work[2] < 1.1 * work[1]


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"`sketch` must be one of .*'coordinates', got 'rows'"):
        LowRankUnitary(1, sketch="rows")
