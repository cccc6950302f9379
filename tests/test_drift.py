import pytest
import torch

from geoopt_projunn.drift import sweep_columns_
from geoopt_projunn.linalg.dense import orthogonality_error
from tests._asserts import assert_bit_equal, assert_same_to_rounding, assert_within
from tests._matrices import DTYPES, WIDE_DTYPES, eps, unitary, wide
from tests._modes import Recorder

dtypes = pytest.mark.parametrize("dtype", DTYPES)
counts = pytest.mark.parametrize("count", [1, 3, 8])

N = 8


def nearly_unitary(*size, error, dtype):
    x = unitary(*size, dtype=wide(dtype))
    return (x + error / N * torch.randn(*size, dtype=wide(dtype))).to(dtype)


def sweep(x, count, step):
    swept = x.clone()
    active = torch.ones(x.shape[0], dtype=torch.bool)
    sweep_columns_(swept, count, torch.full(x.shape[:1], step), active)
    return swept


def cycle(x, count):
    for step in range(-(-N // count)):
        x = sweep(x, count, step)
    return x


@pytest.mark.parametrize("step", [0, 2, 7, 1000])
@counts
@dtypes
def test_a_sweep_is_the_formula_for_the_columns_whose_turn_it_is(dtype, count, step):
    x = nearly_unitary(2, N, N, error=1e-2, dtype=dtype)
    turn = [(step * count + i) % N for i in range(count)]
    c, eye = x[..., turn], torch.eye(N, dtype=dtype)
    e = x.mH @ c - eye[:, turn]
    expected = x.clone()
    expected[..., turn] = c - x @ e + c @ e[:, turn] / 2
    assert_same_to_rounding(sweep(x, count, step), expected)


@counts
@dtypes
def test_the_other_columns_keep_their_bits(dtype, count):
    x = nearly_unitary(2, N, N, error=1e-2, dtype=dtype)
    swept = sweep(x, count, 1)
    others = [j for j in range(N) if j not in {(count + i) % N for i in range(count)}]
    assert_bit_equal(swept[..., others], x[..., others])


@counts
@dtypes
def test_each_matrix_of_a_batch_is_at_its_own_step(dtype, count):
    x = nearly_unitary(3, N, N, error=1e-2, dtype=dtype)
    steps = [0, 5, 2]
    swept = x.clone()
    sweep_columns_(swept, count, torch.tensor(steps), torch.ones(3, dtype=torch.bool))
    for i, step in enumerate(steps):
        assert_same_to_rounding(swept[i], sweep(x[i : i + 1], count, step)[0], ulps=4)


@counts
@dtypes
def test_an_inactive_matrix_keeps_its_bits_even_if_it_is_not_finite(dtype, count):
    x = nearly_unitary(3, N, N, error=1e-2, dtype=dtype)
    x[1] = float("nan")
    before = x.clone()
    sweep_columns_(x, count, torch.tensor([4, 4, 4]), torch.tensor([True, False, False]))
    assert torch.equal(x[1:].isnan(), before[1:].isnan())
    assert_bit_equal(x[2], before[2])
    assert_bit_equal(x[0], sweep(before[:1], count, 4)[0])
    assert not torch.equal(x[0], before[0])


@counts
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
def test_a_cycle_takes_the_error_down_quadratically(dtype, count):
    after = []
    for error in (1e-3, 1e-4):
        torch.manual_seed(0)
        x = nearly_unitary(4, N, N, error=error, dtype=dtype)
        after.append(orthogonality_error(cycle(x, count)))
        assert (after[-1] < 5 * orthogonality_error(x) ** 2).all()
    assert_within(after[0] / after[1], 100.0, 2.0)


@counts
@dtypes
def test_a_few_cycles_end_at_rounding(dtype, count):
    x = nearly_unitary(2, N, N, error=1e-2, dtype=dtype)
    for _ in range(5):
        x = cycle(x, count)
    assert_within(orthogonality_error(x), 0, 10 * eps(dtype))


@counts
@dtypes
def test_a_sweep_of_a_unitary_matrix_moves_it_by_rounding(dtype, count):
    x = unitary(2, N, N, dtype=dtype)
    assert_same_to_rounding(sweep(x, count, 3), x)


@pytest.mark.parametrize("count", [1, 3])
def test_a_sweep_creates_nothing_of_the_size_of_the_matrix_and_waits_for_nothing(count):
    x, step, active = unitary(1, 64, 64), torch.tensor([5]), torch.tensor([True])
    with Recorder() as recorder:
        sweep_columns_(x, count, step, active)
    assert recorder.largest <= 2 * count * 64
    assert not recorder.forbidden


@pytest.mark.parametrize("factor", [2.5, 10.0])
def test_a_matrix_that_was_overwritten_is_left_to_its_owner(factor):
    x = factor * unitary(1, 6, 6)
    before = x.clone()
    for number in range(20):
        sweep_columns_(x, 1, torch.tensor([number]), torch.tensor([True]))
    assert torch.equal(x, before)
