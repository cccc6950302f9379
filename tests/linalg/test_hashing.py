import pytest
import torch

from geoopt_projunn.linalg.hashing import MIX_1, MIX_2, bits_of, uniform

MASK = 2**32 - 1


def finalize(z):
    z = (z ^ z >> 16) * 0x21F0AAAD & MASK
    z = (z ^ z >> 15) * 0x735A2D97 & MASK
    return z ^ z >> 15


@pytest.mark.parametrize("counter", [0, 1, 12345, 2**32 - 1, 2**40 + 7, 2**62, -3])
def test_numbers_are_those_of_the_finalizer(counter):
    count = 5
    drawn = uniform(torch.tensor(counter), count)
    first = (counter & MASK) * count + 1
    expected = [(finalize(first + i & MASK) + 0.5) * 2.0**-31 - 1.0 for i in range(count)]
    assert drawn.tolist() == expected


def test_no_product_overflows():
    # Of signed integers an overflow wraps around in torch, but need not in compiled code.
    assert MASK * max(MIX_1, MIX_2) < 2**63


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex128])
def test_different_rows_have_different_counters_that_start_anywhere(dtype):
    # Small integers: of float64 their bits differ in the upper half alone.
    rows = torch.randint(-4, 5, (500, 3, 8), generator=torch.Generator().manual_seed(0)).to(dtype)
    counter = bits_of(rows)
    # A sum of eight of them takes fewer values than there are rows.
    assert counter.unique().numel() > 50
    assert (counter % 8).unique().numel() == 8


def test_numbers_are_odd_multiples_of_the_last_bit_within_the_open_interval():
    drawn = uniform(torch.arange(100), 1000)
    assert drawn.dtype == torch.float64
    assert drawn.abs().max() < 1
    assert (drawn * 2.0**32 % 2 == 1).all()


def test_equal_counters_give_equal_numbers_whatever_the_batch():
    counter = torch.tensor([[3, 8, 3], [8, 0, 1]])
    drawn = uniform(counter, 7)
    assert drawn.shape == (2, 3, 7)
    for place in ((0, 0), (0, 1), (1, 2)):
        assert torch.equal(drawn[place], uniform(counter[place], 7))
    assert torch.equal(drawn[0, 0], drawn[0, 2])


def test_no_number_comes_twice():
    drawn = uniform(torch.arange(300), 300)
    assert drawn.unique().numel() == drawn.numel()


@pytest.mark.parametrize(
    ("moment", "mean", "variance"),
    [
        (lambda a: a[:, 1:], 0, 1 / 3),
        (lambda a: a[:, 1:] ** 2, 1 / 3, 4 / 45),
        (lambda a: a[:, 1:] * a[:, :-1], 0, 1 / 9),
        (lambda a: a[1:] * a[:-1], 0, 1 / 9),
    ],
    ids=["mean", "square", "neighbours", "consecutive counters"],
)
def test_moments_are_those_of_independent_uniform_numbers(moment, mean, variance):
    sample = moment(uniform(torch.arange(400), 400))
    deviation = (sample.mean() - mean).abs() / (variance / sample.numel()) ** 0.5
    assert deviation < 4
