import pytest
import torch

from geoopt_projunn.linalg.rows import IN_TORCH
from geoopt_projunn.rotation import Rotation
from tests._asserts import (
    assert_bit_equal,
    assert_same_to_rounding,
    assert_unitary,
    assert_within,
)
from tests._matrices import (
    DTYPES,
    eps,
    exponential_reference,
    eye_like,
    skew,
    unitary,
    wide,
)
from tests._modes import Recorder

dtypes = pytest.mark.parametrize("dtype", DTYPES)
ranks = pytest.mark.parametrize("r", [2, 4, 8])


def some_rotation(b, n, r, dtype, norm=2.0):
    """A rotation and the dense matrix that it stands for."""
    w = unitary(b, n, n, dtype=wide(dtype))[..., :r]
    delta = exponential_reference(skew(b, r, r, norm=norm, dtype=wide(dtype))) - torch.eye(r)
    dense = torch.eye(n) + w @ delta @ w.mH
    return Rotation(w.mH.to(dtype), delta), dense


@ranks
@dtypes
def test_a_rotation_is_the_dense_matrix_that_it_stands_for(dtype, r):
    rotation, dense = some_rotation(3, 9, r, dtype)
    v = torch.randn(3, 9, 5, dtype=dtype)
    assert_same_to_rounding(rotation(v), (dense @ v.to(dense.dtype)).to(dtype))


@ranks
@dtypes
def test_in_place_is_the_same_rotation_and_creates_nothing_of_that_size(dtype, r):
    rotation, _ = some_rotation(2, 40, r, dtype)
    x = unitary(2, 40, 40, dtype=dtype)
    expected, place = rotation(x), x.data_ptr()
    with Recorder() as recorder:
        rotation.apply_(x, IN_TORCH)
    assert x.data_ptr() == place
    assert recorder.largest <= 2 * r * 40
    assert_same_to_rounding(x, expected)


@dtypes
def test_calling_leaves_the_argument_alone(dtype):
    rotation, _ = some_rotation(2, 6, 2, dtype)
    whole = Rotation(
        None, rotation.rows.mH.to(wide(dtype)) @ rotation.delta @ rotation.rows.to(wide(dtype))
    )
    for each in (rotation, whole):
        v = torch.randn(2, 6, 6, dtype=dtype)
        before = v.clone()
        result = each(v)
        assert_bit_equal(v, before)
        assert result.data_ptr() != v.data_ptr()


@dtypes
def test_without_rows_the_core_acts_on_the_whole_space(dtype):
    _, dense = some_rotation(2, 6, 4, dtype)
    rotation = Rotation(None, dense - torch.eye(6))
    x = torch.randn(2, 6, 6, dtype=dtype)
    expected = (dense @ x.to(dense.dtype)).to(dtype)
    assert_same_to_rounding(rotation(x), expected)
    rotation.apply_(x, IN_TORCH)
    assert_same_to_rounding(x, expected)


@dtypes
def test_a_zero_core_moves_no_bit(dtype):
    rotation, _ = some_rotation(2, 6, 2, dtype)
    x = torch.randn(2, 6, 6, dtype=dtype)
    before = x.clone()
    still = rotation._replace(delta=torch.zeros_like(rotation.delta))
    assert_bit_equal(still(x), before)
    still.apply_(x, IN_TORCH)
    assert_bit_equal(x, before)


@pytest.mark.parametrize("norm", [1e-3, 1.0, 3.0])
@dtypes
def test_many_rotations_carry_an_orthogonality_error_along_and_do_not_amplify_it(dtype, norm):
    # What the left form with a unitary P is for: no division by a singular value of x.
    n, size = 16, 1e-3
    x = unitary(1, n, n, dtype=dtype)
    x = x + size * torch.randn(1, n, n, dtype=dtype) / n
    before = torch.linalg.matrix_norm(x.mH @ x - eye_like(x)).item()
    for _ in range(300):
        rotation, _ = some_rotation(1, n, 2, dtype, norm)
        rotation.apply_(x, IN_TORCH)
    after = torch.linalg.matrix_norm(x.mH @ x - eye_like(x)).item()
    assert abs(after - before) < 200 * n * eps(dtype)


@dtypes
def test_a_rotation_of_a_point_is_a_point_and_of_a_vector_has_its_length(dtype):
    rotation, _ = some_rotation(2, 12, 4, dtype)
    assert_unitary(rotation(unitary(2, 12, 12, dtype=dtype)))
    v = torch.randn(2, 12, 5, dtype=dtype)
    length = torch.linalg.matrix_norm(v)
    assert_within(torch.linalg.matrix_norm(rotation(v)) / length, 1.0, 20 * eps(dtype))


@dtypes
@pytest.mark.parametrize("whole", [True, False])
def test_a_rotation_is_finite_where_all_of_it_is(dtype, whole):
    rotation, dense = some_rotation(5, 6, 2, dtype)
    if whole:
        rotation = Rotation(None, dense - torch.eye(6))
    rotation.delta[1, 0, 1] = float("nan")
    rotation.delta[2, 1, 1] = float("inf")
    rotation.delta[3, 0, 0], rotation.delta[3, 0, 1] = float("inf"), -float("inf")
    expected = [True, False, False, False, True]
    if not whole:
        rotation.rows[4, 1, 5] = float("nan")
        expected[4] = False
    assert rotation.is_finite().tolist() == expected


@dtypes
@pytest.mark.parametrize("whole", [True, False])
def test_a_rotation_holds_where_it_is_active_and_nothing_moves_elsewhere(dtype, whole):
    rotation, dense = some_rotation(3, 6, 2, dtype)
    if whole:
        rotation = Rotation(None, dense - torch.eye(6))
    x = unitary(3, 6, 6, dtype=dtype)
    expected = rotation(x)
    rotation.delta[1] = float("nan")
    moved = rotation.where(torch.tensor([True, False, True]))(x)
    assert_bit_equal(moved[1], x[1])
    assert_bit_equal(moved[::2], expected[::2])
