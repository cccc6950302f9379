"""Real outputs from a complex state."""

import torch
from torch import Tensor

from ..arguments import assert_flag
from .arguments import assert_real_dtype, integers
from .real import StaysReal

__all__ = ["RealReadout"]


class RealReadout(StaysReal, torch.nn.Linear):
    r"""Map complex features h to :math:`A \operatorname{Re} h + B \operatorname{Im} h + c`, real.

    Every real-linear map of h has this form, so no information in h is lost.

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
    in_features : int
        2 in_features of the argument: the columns of the weight

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range.

    Examples
    --------
    >>> readout = RealReadout(8, 2)
    >>> readout(torch.randn(5, 8, dtype=torch.complex64)).shape
    torch.Size([5, 2])
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
        assert_real_dtype("the weight is", dtype)
        in_features, out_features = integers(0, in_features=in_features, out_features=out_features)
        super().__init__(2 * in_features, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Map (*, in_features), complex, to (*, out_features), real."""
        if not input.is_complex():
            raise TypeError(
                f"`input` must be complex, got {input.dtype}; "
                "use torch.nn.Linear for real features."
            )
        features = self.in_features // 2
        if input.shape[-1] != features:
            raise ValueError(
                f"`input` must have {features} features, the last dimension, got shape "
                f"{tuple(input.shape)}; make the readout with `in_features={input.shape[-1]}`."
            )
        return super().forward(torch.view_as_real(input.resolve_conj()).flatten(-2))

    def extra_repr(self) -> str:
        """Return the arguments, in_features of complex numbers."""
        bias = self.bias is not None
        return f"in_features={self.in_features // 2}, out_features={self.out_features}, bias={bias}"
