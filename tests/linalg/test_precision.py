import pytest
import torch

from geoopt_projunn.linalg.precision import WIDE, full_precision
from tests._matrices import DTYPES, wide


@full_precision
def multiply(a, b, *, scale=1.0):
    """Multiply."""
    return scale * (a @ b)


def test_cores_are_computed_in_double_precision_of_the_same_kind():
    assert {dtype: wide(dtype) for dtype in DTYPES} == WIDE


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_autocast_does_not_reach_a_full_precision_function(half):
    a, b = torch.randn(4, 4), torch.randn(4, 4)
    with torch.autocast("cpu", dtype=half):
        assert (a @ b).dtype == half
        product = multiply(a, b, scale=2.0)
        assert (a @ b).dtype == half
    assert torch.equal(product, 2.0 * (a @ b))


def test_autocast_is_restored_when_the_function_raises():
    @full_precision
    def fail():
        raise RuntimeError("on purpose")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(RuntimeError, match="on purpose"):
            fail()
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")


def test_the_function_keeps_its_name_and_its_documentation():
    assert multiply.__name__ == "multiply"
    assert multiply.__doc__ == "Multiply."
