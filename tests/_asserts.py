"""One property, one function. Tolerances are multiples of the dtype's rounding."""

import torch

from tests._matrices import eps, eye_like


def assert_within(actual: torch.Tensor, expected: torch.Tensor | float, tolerance: float) -> None:
    """No entry differs by more than the tolerance; NaN fails."""
    worst = (actual - expected).abs().max().item()
    assert worst <= tolerance, f"differs by {worst:.2e}, tolerance {tolerance:.2e}"


def assert_same_to_rounding(
    actual: torch.Tensor, expected: torch.Tensor, ulps: float = 20.0
) -> None:
    """Equal up to ``ulps`` units of rounding of the larger of 1 and the largest entry."""
    assert actual.shape == expected.shape, f"{tuple(actual.shape)} != {tuple(expected.shape)}"
    scale = max(1.0, expected.abs().max().item())
    assert_within(actual, expected, ulps * eps(actual.dtype) * scale)


def assert_bit_equal(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype
    assert torch.equal(actual, expected)


def assert_unitary(x: torch.Tensor, ulps: float = 20.0) -> None:
    """‖xᴴx − I‖ has no entry above ``ulps`` units of rounding."""
    assert_within(x.mH @ x, eye_like(x), ulps * eps(x.dtype))


def assert_tangent(x: torch.Tensor, u: torch.Tensor, ulps: float = 20.0) -> None:
    """xᴴu is skew-Hermitian to ``ulps`` units of rounding of the largest entry of u."""
    product = x.mH @ u
    scale = max(eps(u.dtype), u.abs().max().item())
    assert_within(product, -product.mH, ulps * eps(x.dtype) * scale)
