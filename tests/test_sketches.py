"""What every sketch fulfils."""

import math

import pytest
import torch

from geoopt_projunn.sketches import SKETCHES, exact
from tests._asserts import assert_bit_equal, assert_within
from tests._matrices import eps, unitary, wide
from tests._sketching import dtypes, generator, omega, run, sizes, sketches

pytestmark = pytest.mark.usefixtures("each_way", "without_gradients")


@sizes
@dtypes
@sketches
def test_the_basis_is_orthonormal_and_has_2k_rows(name, dtype, n, k):
    sketched = run(name, unitary(2, n, n, dtype=dtype), torch.randn(2, n, n, dtype=dtype), k)
    assert sketched.rows.shape == (2, min(2 * k, n), n)
    assert sketched.rows.dtype == sketched.core.dtype == wide(dtype)
    assert_within(sketched.rows @ sketched.rows.mH, torch.eye(min(2 * k, n)), 1e-14)


@dtypes
def test_the_whole_generator_is_skew_to_the_last_bit(dtype):
    x, d = unitary(2, 6, 6, dtype=dtype), torch.randn(2, 6, 6, dtype=dtype)
    sketched = exact(x, d)
    assert sketched.rows is None
    assert_bit_equal(sketched.core, -sketched.core.mH)
    assert_within(sketched.core, omega(x, d), 10 * eps(sketched.core.dtype))


@dtypes
@sketches
def test_a_zero_direction_has_a_zero_core_beside_others_that_have_not(dtype, name):
    x, d = unitary(3, 6, 6, dtype=dtype), torch.randn(3, 6, 6, dtype=dtype)
    d[1] = 0
    sketched = run(name, x, d, 2)
    assert not sketched.core[1].any()
    assert sketched.rows.isfinite().all()
    assert sketched.core[0].any()
    assert sketched.core[2].any()


@pytest.mark.parametrize("scale", [1e-30, 1e-15, 1e10, 1e20])
@dtypes
@sketches
def test_a_scaled_direction_has_the_scaled_generator(dtype, name, scale):
    x, d = unitary(3, 8, 8, dtype=dtype), torch.randn(3, 8, 8, dtype=dtype)
    for k in (1, 3):
        plain = generator(run(name, x, d, k, counter=2))
        scaled = generator(run(name, x, d * scale, k, counter=2))
        assert_within(scaled / scale, plain, 100 * eps(dtype))


@dtypes
@sketches
def test_equal_calls_give_equal_bits_and_touch_no_generator(dtype, name):
    x, d = unitary(2, 8, 8, dtype=dtype), torch.randn(2, 8, 8, dtype=dtype)
    state = torch.get_rng_state()
    first, second = (run(name, x, d, 2, counter=4) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert_bit_equal(a, b)
    assert torch.equal(torch.get_rng_state(), state)


@dtypes
@sketches
def test_a_sketch_does_not_depend_on_the_rest_of_the_batch(dtype, name):
    x, d = unitary(5, 8, 8, dtype=dtype), torch.randn(5, 8, 8, dtype=dtype)
    together = generator(run(name, x, d, 2, counter=7))
    alone = torch.cat([generator(run(name, x[i], d[i], 2, counter=7)) for i in range(5)])
    assert_within(together, alone, 50 * eps(dtype))


@sketches
def test_each_step_draws_anew(name):
    x, d = unitary(8, 8), torch.randn(8, 8, dtype=torch.float64)
    kept = torch.cat([generator(run(name, x, d, 1, counter)) for counter in range(20)])
    apart = torch.linalg.matrix_norm(kept[:, None] - kept[None])
    different = apart[~torch.eye(20, dtype=torch.bool)] > 1e-6
    # Two steps may draw the same one of eight columns, but not often.
    assert different.double().mean() > 0.7


@dtypes
@sketches
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_direction_that_is_not_finite_shows_in_its_own_slice_only(dtype, name, bad):
    x, d = unitary(2, 6, 6, dtype=dtype), torch.randn(2, 6, 6, dtype=dtype)
    good = run(name, x, d, 2)
    d[0, 3, 4] = bad
    sketched = run(name, x, d, 2)
    assert not (sketched.core[0].isfinite().all() and sketched.rows[0].isfinite().all())
    assert_bit_equal(sketched.core[1], good.core[1])


@dtypes
@sketches
def test_the_arguments_are_left_as_they_were(dtype, name):
    x, d = unitary(2, 6, 6, dtype=dtype), torch.randn(2, 6, 6, dtype=dtype)
    counter = torch.tensor([3, 9])
    before = [t.clone() for t in (x, d, counter)]
    SKETCHES[name](x, d, 2, counter)
    for tensor, copy in zip((x, d, counter), before, strict=True):
        assert_bit_equal(tensor, copy)
