"""The modReLU, which keeps the phase of a state."""

import torch
from torch import Tensor

from .arguments import assert_real_dtype, integers
from .real import StaysReal

__all__ = ["ModReLU", "modrelu"]


def least_divisor(dtype: torch.dtype) -> float:
    """Return the floor for a modulus in a division: of numbers up to a million none overflows."""
    return torch.finfo(dtype).tiny * 2**20


def modrelu(z: Tensor, offset: Tensor) -> Tensor:
    r"""Shift the modulus and keep the phase, :math:`\frac{z}{|z|} \max(0, |z| + b)`; 0 at 0.

    Parameters
    ----------
    z : torch.Tensor
        (*, n), real or complex
    offset : torch.Tensor
        (n,), real, the b of the formula: a modulus below -b becomes 0

    Returns
    -------
    torch.Tensor
        (*, n). The derivatives, of any order, are taken to be 0 where the result is 0.

    References
    ----------
    Arjovsky, Shah, Bengio, *Unitary Evolution Recurrent Neural Networks*, arXiv:1511.06464.
    """
    if not z.is_complex():
        # The derivative of a sign is 0. If torch derived it, a graph that torch.compile makes for
        # any batch size would take one only.
        return z.detach().sign() * torch.relu(z.abs() + offset)
    # The second derivative of a complex modulus is not a number at 0, even if multiplied by 0.
    zero = z == 0
    # Below this modulus z is scaled up: of a subnormal number torch's sign is not a number.
    small = 2.0**-511 if z.dtype == torch.complex128 else 2.0**-63
    modulus = z.detach().abs()
    scale = torch.where(modulus < small, 1 / small, torch.ones_like(modulus))
    away = torch.where(zero, 1, z * scale)
    return torch.where(zero, 0, away.sgn() * torch.relu(away.abs() / scale + offset))


def activated(z: Tensor, nonlinearity: str, offset: Tensor | None) -> Tensor:
    """Apply "modrelu", or "relu" or "tanh", of a complex z to both of its parts."""
    if nonlinearity == "modrelu":
        assert offset is not None
        return modrelu(z, offset)
    function = torch.relu if nonlinearity == "relu" else torch.tanh
    return torch.view_as_complex(function(torch.view_as_real(z))) if z.is_complex() else function(z)


class ModReLU(StaysReal):
    r"""Apply :func:`modrelu` with a learned offset for each feature.

    Parameters
    ----------
    num_features : int
        size n of the last dimension of the input
    device, dtype
        of the offset; real

    Attributes
    ----------
    offset : torch.nn.Parameter
        (n,). It starts at 0, where modReLU is the identity.
    """

    def __init__(
        self,
        num_features: int,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert_real_dtype("the offset of a complex modulus is", dtype)
        (self.num_features,) = integers(0, num_features=num_features)
        self.offset = torch.nn.Parameter(torch.empty(self.num_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the offset to 0."""
        torch.nn.init.zeros_(self.offset)

    def forward(self, z: Tensor) -> Tensor:
        """Apply to a tensor (*, n), real or complex."""
        if z.dim() == 0 or z.shape[-1] != self.num_features:
            raise ValueError(
                f"`z` must have {self.num_features} features, the last dimension, got {z.shape}; "
                "for one offset for all call `modrelu`."
            )
        return modrelu(z, self.offset)

    def extra_repr(self) -> str:
        """Return the number of features."""
        return f"{self.num_features}"
