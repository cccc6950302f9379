import pytest
import torch

from geoopt_projunn.linalg.hashing import uniform

MASK = 2**64 - 1


def splitmix64(index):
    z = index * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
    return z ^ z >> 31


@pytest.mark.parametrize("counter", [0, 1, 12345, 2**40, 2**62])
def test_numbers_are_the_leading_bits_of_splitmix64(counter):
    count = 5
    drawn = uniform(torch.tensor(counter), count)
    expected = [
        ((splitmix64(counter * count + i + 1) >> 12) + 0.5) * 2.0**-51 - 1.0 for i in range(count)
    ]
    assert drawn.tolist() == expected


def test_numbers_are_odd_multiples_of_the_last_bit_within_the_open_interval():
    drawn = uniform(torch.arange(100), 1000)
    assert drawn.dtype == torch.float64
    assert drawn.abs().max() < 1
    assert (drawn * 2.0**52 % 2 == 1).all()


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
