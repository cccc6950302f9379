"""What a core becomes between sketch and retraction, against eigenvalues."""

import math

import pytest
import torch

from geoopt_projunn.normalization import NORMALIZATIONS, normalized
from geoopt_projunn.sketches import SKETCHES, exact
from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import WIDE_DTYPES, hermitian, skew, skewh, unitary

pytestmark = pytest.mark.usefixtures("without_gradients")
dtypes = pytest.mark.parametrize("dtype", WIDE_DTYPES)
names = pytest.mark.parametrize("name", NORMALIZATIONS)


def angles(s):
    """Angles of skew-Hermitian matrices, those of a plane twice, the largest first."""
    values = torch.linalg.eigvalsh(-1j * skewh(s).to(torch.complex128))
    return values.abs().sort(dim=-1, descending=True).values


def with_angles(values, dtype):
    """A skew-Hermitian matrix that turns planes by these angles; a complex one both ways."""
    r = 2 * len(values)
    planes = torch.block_diag(*(v * torch.tensor([[0.0, -1.0], [1.0, 0.0]]) for v in values))
    q = unitary(r, r, dtype=dtype)
    return (q @ planes.to(dtype) @ q.mH)[None]


def turned(core, length, name):
    return normalized(core, length, name, core.shape[-1])


@dtypes
@pytest.mark.parametrize("size", [1e-300, 1e-9, 1.0, 1e200])
@pytest.mark.parametrize("r", [2, 8, 32])
def test_angle_is_the_root_mean_square_whatever_the_size(r, size, dtype):
    core = size * skew(3, r, r, dtype=dtype)
    after = angles(turned(core, 0.5, "angle"))
    assert_within(after.square().mean(-1).sqrt(), 0.5, 1e-14)
    # One scale for all planes.
    assert_within(after / after[:, :1], angles(core / size) / angles(core / size)[:, :1], 1e-12)


def test_the_axis_of_an_odd_rotation_has_no_angle():
    after = angles(turned(skew(2, 7, 7), 0.5, "angle"))
    assert_within(after[:, :6].square().mean(-1).sqrt(), 0.5, 1e-14)
    assert_within(after[:, 6], 0.0, 1e-14)


@dtypes
@pytest.mark.parametrize("size", [1e-300, 1.0, 1e200])
def test_spectral_turns_every_plane_alike(size, dtype):
    core = size * with_angles([1.0, 0.9, 0.5, 0.2, 0.1], dtype)
    assert_within(angles(turned(core, 0.5, "spectral")), 0.5, 0.005)


@dtypes
def test_spectral_turns_planes_with_hardly_any_gradient_less(dtype):
    after = angles(turned(with_angles([1.0, 0.02, 1e-4, 1e-9], dtype), 1.0, "spectral"))[0, ::2]
    assert_within(after[0], 1.0, 1e-3)
    assert 0.2 < after[1] < 0.5
    assert after[2] < 3e-3
    assert after[3] < 3e-8


@dtypes
@names
def test_the_skew_part_alone_is_followed_and_its_sign_kept(name, dtype):
    core = torch.randn(3, 6, 6, dtype=dtype)
    expected = turned(skewh(core), 0.3, name)
    assert_bit_equal(turned(core, 0.3, name), expected)
    assert_within(turned(core, -0.3, name), -expected, 1e-15)
    assert_within(turned(-core, 0.3, name), -expected, 1e-15)
    # It turns the way of the core.
    assert (expected * skewh(core).conj()).real.sum((-2, -1)).min() > 0


@dtypes
@names
def test_zero_and_rounding_turn_nothing_and_what_is_not_finite_shows(name, dtype):
    core = skew(4, 6, 6, dtype=dtype)
    core[0] = 0
    core[1, 2, 3] = torch.nan
    core[2, 0, 1] = torch.inf
    after = turned(core, 0.3, name)
    assert_bit_equal(after[0], torch.zeros_like(after[0]))
    assert after.isfinite().all(-1).all(-1).tolist() == [True, False, False, True]


@pytest.mark.parametrize("p", [1, 3, 4, 8])
@dtypes
def test_of_tall_matrices_the_mean_is_over_as_many_angles_as_there_can_be(dtype, p):
    x, d = unitary(8, 8, dtype=dtype)[:, :p], torch.randn(8, p, dtype=dtype)
    after = angles(normalized(skewh(d @ x.mH)[None], 0.5, "angle", p))
    assert_within(after[0, : 2 * p].square().mean().sqrt(), 0.5, 1e-13)
    assert_within(after[0, 2 * p :].sum(), 0.0, 1e-13)


@pytest.mark.parametrize(
    ("sketch", "k"), [("tangent", 1), ("tangent", 3), ("lsi", 16), ("column", 16), ("exact", None)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_a_generator_below_a_share_of_its_direction_is_zero(dtype, sketch, k):
    x, counter, share = unitary(2, 16, 16, dtype=dtype), torch.tensor([0, 7]), 1e-3
    noise = torch.randn(2, 16, 16, dtype=dtype)
    normal, tangent = hermitian(noise) @ x, skewh(noise) @ x

    def core(d):
        d = d.contiguous()
        if k is None:
            return exact(x, d, share).core
        return SKETCHES[sketch](x, d, k, counter, floor=share).core

    below, above = core(normal + 1e-5 * tangent), core(normal + 0.1 * tangent)
    assert_bit_equal(below, torch.zeros_like(below))
    assert (skewh(above).abs().amax((-2, -1)) > 1e-2).all()
    assert core(normal * torch.nan).isnan().any(-1).any(-1).all()


@names
@pytest.mark.parametrize("make", [float, lambda length: torch.tensor(length, dtype=torch.float64)])
@pytest.mark.parametrize("length", [2.9, 4.0, -50.0])
@dtypes
def test_no_plane_turns_further_than_half_a_turn(name, dtype, length, make):
    core = torch.cat([with_angles([1.0, 0.0, 0.0, 0.0], dtype), skew(1, 8, 8, dtype=dtype)])
    after = turned(core, make(length), name)
    assert angles(after).max() <= math.pi * (1 + 1e-14)
    if name == "angle" or abs(length) > math.pi:
        # And as far as that to 1 %.
        assert_within(angles(after)[0, 0], math.pi, 0.01 * math.pi)
    assert_within(after, turned(core, length, name), 1e-13)


@names
def test_shortening_stays_where_it_is_needed(name):
    """A batch has one matrix that would turn too far; the others are as without it."""
    core = torch.cat([with_angles([1.0, 0.0, 0.0, 0.0], torch.float64), skew(2, 8, 8)])
    core[1:] = with_angles([1.0, 0.9, 0.8, 0.7], torch.float64)
    together, alone = turned(core, 2.0, name), turned(core[1:], 2.0, name)
    assert_within(together[1:], alone, 1e-14)
    if name == "angle":
        assert_within(angles(together)[1:].square().mean(-1).sqrt(), 2.0, 1e-13)


@names
def test_matrices_without_entries_pass(name):
    for shape in ((2, 0, 0), (0, 4, 4)):
        core = torch.empty(shape, dtype=torch.float64)
        assert turned(core, 0.3, name).shape == shape
