"""The parts of a step: every backend does what the reference does."""

import pytest
import torch

from geoopt_projunn.backends.spec import StepSpec
from geoopt_projunn.rotation import Rotation
from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import DTYPES, WIDE_DTYPES, eps, skew, unitary, wide

from ._cases import REFERENCE, backend, by_columns, draw, each_other, generator, stretched

pytestmark = pytest.mark.usefixtures("without_gradients")
dtypes = pytest.mark.parametrize("dtype", DTYPES)
sketches = pytest.mark.parametrize("sketch", ["tangent", "lsi", "column"])
# One chunk of rows and several; whole vectors and rests; as many vectors as there can be.
SQUARE = [(2, 1), (5, 1), (5, 2), (24, 1), (64, 4), (65, 32), (130, 60), (260, 1), (260, 3)]
TALL = [(7, 1, 1), (24, 7, 1), (24, 7, 3), (260, 33, 1), (260, 33, 4), (65, 64, 30)]
sizes = pytest.mark.parametrize(("n", "p", "k"), [*((n, n, k) for n, k in SQUARE), *TALL])


def spec(k, sketch="tangent", retraction="exponential", sweep=1):
    return StepSpec(k, sketch, retraction, sweep)


@sizes
@sketches
@dtypes
@each_other
def test_a_sketch_is_that_of_the_reference(name, dtype, sketch, n, p, k):
    x, d, counter = draw(n, dtype, p=p)
    actual = backend(name).sketch(x, d, spec(k, sketch), counter)
    expected = REFERENCE.sketch(x, d, spec(k, sketch), counter)
    assert actual.rows.dtype == actual.core.dtype == wide(dtype)
    assert actual.rows.shape == expected.rows.shape
    # Where the vectors reach nearly everything the last of them are badly determined.
    loss = 1e5 if 2 * k > n - 2 or k > p - 2 else 1e3
    size = torch.linalg.matrix_norm(generator(expected)).max().item()
    assert_within(generator(actual), generator(expected), loss * eps(dtype) * size)


@pytest.mark.parametrize("layout", [by_columns, stretched, lambda x: x.mH.contiguous().mH])
@pytest.mark.parametrize(("n", "p"), [(24, 24), (260, 260), (24, 9), (260, 33)])
@sketches
@dtypes
@each_other
def test_layouts_make_no_difference(name, dtype, sketch, n, p, layout):
    x, d, counter = draw(n, dtype, p=p)
    own = backend(name)
    for k in (2,) if n == p else (1, 2):
        expected = generator(own.sketch(x, d, spec(k, sketch), counter))
        bound = 1e3 * eps(dtype) * expected.abs().max().item()
        for point, direction in ((layout(x), d), (x, layout(d)), (layout(x), layout(d))):
            actual = generator(own.sketch(point, direction, spec(k, sketch), counter))
            assert_within(actual, expected, bound)


@sketches
@each_other
def test_generators_are_scaled(name, sketch):
    x, d, counter = draw(24, torch.float64, p=9)
    twice = backend(name).sketch(x, d, spec(2, sketch)._replace(scale=2.0), counter)
    assert_within(
        generator(twice), 2 * generator(backend(name).sketch(x, d, spec(2, sketch), counter)), 1e-12
    )


@pytest.mark.parametrize("counter", [-1, -7, 2**40, -(2**40), 2**62 + 3, -(2**62) - 3])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("sketch", ["tangent", "lsi"])
@each_other
def test_any_counter_stays_within_its_matrix(name, sketch, k, counter):
    x, d, _ = draw(9, torch.float64)
    d[0], d[2] = torch.nan, torch.nan
    number, own, before = torch.tensor([counter]), backend(name), x.clone()
    sketched = own.sketch(x[1:2], d[1:2], spec(k, sketch), number)
    rotation = own.rotation(sketched, 0.1, spec(k), x.dtype)
    assert own.turn_(x[1:2], rotation, 4, number, torch.ones(1, dtype=torch.bool)).all()
    assert_bit_equal(x[::2], before[::2])
    if abs(counter) < 2**60:
        expected = REFERENCE.sketch(before[1:2], d[1:2], spec(k, sketch), number)
        assert_within(generator(sketched), generator(expected), 1e-11)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("k", [1, 3])
@sketches
@dtypes
@each_other
def test_a_direction_that_is_not_finite_shows_in_its_own_result_only(name, dtype, sketch, k, bad):
    x, d, counter = draw(20, dtype)
    expected = backend(name).sketch(x, d, spec(k, sketch), counter)
    d[1, 7, 3] = bad
    actual = backend(name).sketch(x, d, spec(k, sketch), counter)
    finite = [bool(part.isfinite().all()) for part in actual.core]
    assert finite == [True, False, True]
    assert_within(generator(actual)[::2], generator(expected)[::2], 1e-4)


@pytest.mark.parametrize("retraction", ["exponential", "polar", "cayley"])
@pytest.mark.parametrize("dtype", WIDE_DTYPES)
@pytest.mark.parametrize("norm", [1e-200, 1e-9, 0.3, 3.0, 160.0, 1e6])
@pytest.mark.parametrize("r", [2, 7, 64, 66])
@each_other
def test_a_core_is_retracted_as_by_the_reference(name, r, norm, dtype, retraction):
    core = skew(4, r, r, norm=norm, dtype=dtype)
    core[3] = 0
    actual, expected = (own.retract(core, retraction) for own in (backend(name), REFERENCE))
    # Squaring and solving lose what a long generator has of angle; a short one keeps its digits.
    assert_within(actual, expected, 1e-13 * norm * (1 if norm < 1 else r))
    assert_bit_equal(actual[3], torch.zeros_like(actual[3]))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("retraction", ["exponential", "polar", "cayley"])
@each_other
def test_a_core_that_is_not_finite_shows_in_its_own_result_only(name, retraction, bad):
    core = skew(3, 6, 6, norm=0.3)
    core[1, 2, 3] = bad
    delta = backend(name).retract(core, retraction)
    assert [bool(part.isfinite().all()) for part in delta] == [True, False, True]


# From what rounding leaves to what is too far to be mended by a sweep.
@pytest.mark.parametrize("off", [0.0, 1e-3, 1.0])
@pytest.mark.parametrize("sweep", [0, 1, 7])
@pytest.mark.parametrize(
    ("n", "p", "r"), [(2, 2, 2), (7, 7, 3), (24, 24, 2), (260, 260, 6), (24, 9, 4), (260, 33, 6)]
)
@pytest.mark.parametrize("layout", [torch.clone, by_columns])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64])
@each_other
def test_points_are_turned_and_swept_as_by_the_reference(name, dtype, layout, n, p, r, sweep, off):
    noise = torch.randn(5, n, p, dtype=dtype) / n
    x = layout(unitary(5, n, n, dtype=dtype)[..., :p] + off * noise)
    rows = torch.linalg.qr(torch.randn(5, n, r, dtype=dtype)).Q.mH.contiguous()
    delta = REFERENCE.retract(skew(5, r, r, norm=0.4, dtype=wide(dtype)), "exponential")
    delta[2, 0, 0] = torch.nan
    rows[4, r - 1, n - 1] = torch.inf
    active = torch.tensor([True, True, True, False, True])
    counter = torch.tensor([0, 3, 5, 2**40 + 1, 7])
    before, other = x.clone(), x.clone()
    for own, point in ((backend(name), x), (REFERENCE, other)):
        turned = own.turn_(point, Rotation(rows, delta), min(sweep, p), counter, active)
        assert turned.tolist() == [True, True, False, False, False]
    assert_within(x, other, 30 * eps(dtype) * (1 + off))
    assert_bit_equal(x[2:], before[2:])
    assert not torch.equal(x[:2], before[:2])
    if sweep and off == 1e-3 and n > 7:
        # The columns whose turn it was are orthonormal to second order.
        turn = torch.arange(sweep) % p
        error = x[0].mH @ x[0][:, turn] - torch.eye(p, dtype=dtype)[:, turn]
        assert torch.linalg.matrix_norm(error) < 10 * off**2 * n**0.5 + 100 * eps(dtype)


@pytest.mark.parametrize("normalize", [None, "angle", "spectral"])
@pytest.mark.parametrize("sketch", ["tangent", "lsi", "column"])
@each_other
def test_a_rotation_has_a_length_for_each_matrix(name, sketch, normalize):
    x, d, counter = draw(24, torch.complex128)
    lengths = torch.tensor([0.1, 0.0, -0.3], dtype=torch.float64)[:, None, None]
    how = spec(2, sketch)._replace(normalize=normalize)
    sketched = backend(name).sketch(x, d, how, counter)
    together = backend(name).rotation(sketched, lengths, how, x.dtype)(x)
    for i, length in enumerate(lengths.flatten().tolist()):
        alone = REFERENCE.rotation(sketched, length, how, x.dtype)(x)
        assert_within(together[i], alone[i], 1e-13)


@pytest.mark.parametrize(
    "shape", [(1, 300, 300), (3, 150, 260), (40, 41, 41), (2, 6, 5), (2, 0, 5), (0, 4, 4)]
)
@pytest.mark.parametrize("counts", [(1, 0), (0, 2), (3, 5), (16, 1)])
@pytest.mark.parametrize("layout", [torch.clone, by_columns, torch.conj])
@dtypes
@each_other
def test_products_of_a_few_rows_are_those_of_the_reference(name, dtype, layout, counts, shape):
    b, n, m = shape
    x = layout(torch.randn(shape, dtype=dtype))
    # Rows that are views, as transposes and conjugates are.
    left = torch.randn(b, n, counts[0], dtype=dtype).mH
    right = torch.randn(b, counts[1], 2 * m, dtype=dtype)[..., ::2]
    own = backend(name).products
    bound = 50 * eps(dtype) * max(n, m) ** 0.5
    out_left, out_right = own.both_sides(left, right, x)
    torch.testing.assert_close(out_left, left @ x, atol=bound, rtol=0)
    torch.testing.assert_close(out_right, right @ x.mH, atol=bound, rtol=0)
    torch.testing.assert_close(own.times(left, x), left @ x, atol=bound, rtol=0)
    torch.testing.assert_close(own.times_adjoint(right, x), right @ x.mH, atol=bound, rtol=0)
    factor = torch.randn(b, counts[0], m, dtype=dtype)
    expected = x + left.mH @ factor
    if counts[0]:
        own.add_product_(x, left, factor)
    torch.testing.assert_close(x, expected, atol=20 * eps(dtype) * (1 + counts[0]), rtol=0)
