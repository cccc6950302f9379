"""Initial matrices are unitary, of the law that they name."""

import math

import pytest
import torch

from geoopt_projunn import init, nn
from tests._asserts import assert_bit_equal, assert_unitary
from tests._matrices import DTYPES, eye_like


def phases(x):
    return torch.linalg.eigvals(x.to(torch.complex128)).angle()


@pytest.mark.parametrize("name", init.INITS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(1, 1), (2, 2), (7, 7), (2, 3, 6, 6), (0, 4, 4)])
def test_it_is_unitary_and_of_the_asked_shape_and_dtype(name, dtype, size):
    x = init.INITS[name](*size, dtype=dtype)
    assert x.shape == size
    assert x.dtype == dtype
    if x.numel():
        assert_unitary(x)


@pytest.mark.parametrize("name", init.INITS)
def test_the_default_dtype_is_torchs(name):
    assert init.INITS[name](4, 4).dtype == torch.get_default_dtype()


@pytest.mark.parametrize("name", init.INITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_it_runs_without_data(name, dtype):
    x = init.INITS[name](5, 5, dtype=dtype, device="meta")
    assert x.is_meta
    assert x.shape == (5, 5)


@pytest.mark.parametrize("name", ["henaff", "cayley", "identity"])
def test_the_determinant_of_a_real_one_is_positive(name):
    determinants = torch.linalg.det(init.INITS[name](50, 5, 5))
    assert torch.allclose(determinants, torch.ones(50), atol=1e-5)


def test_haar_has_either_sign():
    signs = torch.linalg.det(init.haar(50, 5, 5)).sign()
    assert set(signs.tolist()) == {-1.0, 1.0}


@pytest.mark.parametrize(("name", "largest"), [("henaff", math.pi), ("cayley", math.pi / 2)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_the_angles_are_uniform_up_to_the_largest(name, largest, dtype):
    angles = phases(init.INITS[name](500, 500, dtype=dtype))
    assert angles.abs().max() <= largest + 1e-12
    ranks = torch.linspace(-largest, largest, 500, dtype=torch.float64)
    assert (angles.sort().values - ranks).abs().max() < 0.2 * largest


def test_cayley_is_the_cayley_transform_of_its_paper():
    x = init.cayley(6, 6, dtype=torch.float64)
    eye = eye_like(x)
    generator = torch.linalg.solve(eye + x, eye - x)
    assert torch.allclose(generator, -generator.mT)
    blocks = torch.block_diag(*[torch.ones(2, 2) - torch.eye(2)] * 3)
    assert_bit_equal(generator.abs() > 1e-9, blocks > 0)
    assert (generator.abs() <= 1).all()


def test_the_blocks_of_henaff_are_rotations():
    x = init.henaff(5, 5)
    for i in (0, 2):
        block = x[i : i + 2, i : i + 2]
        assert block[0, 0] == block[1, 1]
        assert block[0, 1] == -block[1, 0]
    assert x[4, 4] == 1
    assert torch.count_nonzero(x) == 9


@pytest.mark.parametrize("name", init.INITS)
def test_sizes_that_do_not_fit_are_refused(name):
    words = (
        r"`size` must be \(\*, n, p\) with n >= p" if name == "haar" else r"be \(\*, n, n\), got"
    )
    for size in ((4, 6), (6,)):
        with pytest.raises(ValueError, match=words):
            init.INITS[name](*size)


def test_a_dtype_of_half_precision_is_refused():
    with pytest.raises(
        TypeError, match=r"`dtype` must be one of torch.float32.* got torch.float16"
    ):
        init.haar(4, 4, dtype=torch.float16)


@pytest.mark.parametrize("kind", [nn.OrthogonalLinear, nn.OrthogonalRNN])
def test_what_has_no_hash_is_no_name(kind):
    with pytest.raises(ValueError, match=r"\['haar'\]"):
        kind(4, 4, init=["haar"])
