"""Real outputs from a complex state."""

from typing import Any

import torch
from torch import Tensor

from ..arguments import assert_flag
from .activation import real
from .arguments import integers

__all__ = ["RealReadout"]


class RealReadout(torch.nn.Linear):
    r"""Map complex features h to :math:`A \operatorname{Re} h + B \operatorname{Im} h + c`, real.

    Every real-linear map of h has this form, so that the map sees all of h.

    Parameters
    ----------
    in_features : int
        complex features of the input
    out_features : int
        real features of the output
    bias : bool
        whether to add c
    device, dtype
        of the weight; real

    Attributes
    ----------
    weight : torch.nn.Parameter
        (out_features, 2 in_features); its columns belong to Re h₁, Im h₁, Re h₂, …, the order
        in which a complex tensor lies in memory
    bias : torch.nn.Parameter
        (out_features,)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        assert_flag("bias", bias)
        in_features, out_features = integers(0, in_features=in_features, out_features=out_features)
        super().__init__(2 * in_features, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Map (*, in_features), complex, to (*, out_features), real."""
        if not input.is_complex():
            raise TypeError(
                f"`input` must be complex, got {input.dtype}; "
                "use torch.nn.Linear for real features."
            )
        return super().forward(torch.view_as_real(input.resolve_conj()).flatten(-2))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # `.to(torch.complex64)` of a model must not make the weight complex.
        return super()._apply(lambda t: real(fn(t)), recurse)  # type: ignore[no-untyped-call]
