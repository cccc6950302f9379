"""Half of the frequencies stand for all of them."""

import itertools
import math

import pytest
import torch

from geoopt_projunn.nn.frequencies import (
    analyse,
    analyse_complex,
    stored_frequencies,
    synthesise,
    synthesise_complex,
)
from tests._asserts import assert_same_to_rounding

GRIDS = [
    *[(n,) for n in (1, 2, 3, 4, 7, 8)],
    *[(1, 1), (2, 2), (3, 5), (4, 6), (4, 3), (3, 4), (1, 4), (8, 2)],
    *[(2, 2, 2), (3, 5, 3), (4, 4, 4), (4, 3, 6), (3, 4, 4), (6, 4, 3), (1, 4, 2)],
    (2, 4, 3, 4),
]


def mirror(f, grid):
    return tuple(-k % n for k, n in zip(f, grid, strict=True))


@pytest.mark.parametrize("grid", GRIDS)
def test_the_stored_frequencies_and_their_mirrors_are_all_there_are(grid):
    own, pairs = stored_frequencies(grid)
    assert all(mirror(f, grid) == f for f in own)
    assert len(own) == math.prod(1 if n % 2 else 2 for n in grid)
    every = sorted((*own, *pairs, *(mirror(f, grid) for f in pairs)))
    assert every == sorted(itertools.product(*map(range, grid)))


@pytest.mark.parametrize("grid", GRIDS)
def test_the_coordinates_are_those_of_the_discrete_fourier_transform(grid):
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    spectrum = torch.fft.fftn(x, dim=tuple(range(2, x.dim())), norm="ortho")
    for coordinates, stored in zip(analyse(x, grid), stored_frequencies(grid), strict=True):
        assert coordinates.shape == (len(stored), 2, 3)
        for value, f in zip(coordinates, stored, strict=True):
            assert_same_to_rounding(value + 0j, spectrum[(..., *f)])


@pytest.mark.parametrize("grid", GRIDS)
def test_synthesis_undoes_analysis(grid):
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    assert_same_to_rounding(synthesise(*analyse(x, grid), grid), x)
    z = torch.randn(2, 3, *grid, dtype=torch.complex128)
    assert_same_to_rounding(synthesise_complex(analyse_complex(z), grid), z)


@pytest.mark.parametrize("grid", GRIDS)
def test_analysis_undoes_synthesis(grid):
    own, pairs = (len(stored) for stored in stored_frequencies(grid))
    a = torch.randn(own, 2, 3, dtype=torch.float64)
    b = torch.randn(pairs, 2, 3, dtype=torch.complex128)
    again = analyse(synthesise(a, b, grid), grid)
    assert_same_to_rounding(again[0], a)
    if pairs:
        assert_same_to_rounding(again[1], b)


@pytest.mark.parametrize("grid", GRIDS)
def test_the_norm_counts_each_pair_twice(grid):
    x = torch.randn(2, 3, *grid, dtype=torch.float64)
    own, pairs = analyse(x, grid)
    total = own.square().sum() + 2 * pairs.abs().square().sum()
    assert_same_to_rounding(total, x.square().sum())


@pytest.mark.parametrize("grid", [(5,), (4,), (3, 4), (4, 4), (2, 3, 4), (4, 4, 2)])
def test_both_have_first_and_second_derivatives(grid):
    x = torch.randn(1, 2, *grid, dtype=torch.float64, requires_grad=True)
    for weight in (1.0, 0.7):
        assert torch.autograd.gradcheck(lambda x, w=weight: analyse(x, grid, w), (x,))
        assert torch.autograd.gradgradcheck(lambda x, w=weight: analyse(x, grid, w), (x,))
    coordinates = tuple(part.detach().requires_grad_() for part in analyse(x, grid))
    for weight in (1.0, 0.7):

        def of(a, b, weight=weight):
            return synthesise(a, b, grid, weight)

        assert torch.autograd.gradcheck(of, coordinates)
        assert torch.autograd.gradgradcheck(of, coordinates)


def test_analysis_maps_over_a_batch_of_batches():
    x = torch.randn(4, 2, 3, 4, 6, dtype=torch.float64)
    mapped = torch.func.vmap(lambda x: analyse(x, (4, 6)))(x)
    for index, one in enumerate(x):
        for part, expected in zip(mapped, analyse(one, (4, 6)), strict=True):
            assert_same_to_rounding(part[index], expected)
