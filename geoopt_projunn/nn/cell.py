"""One step of a recurrent layer."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..linalg.precision import full_precision
from ..manifold import LowRankUnitary
from .activation import modrelu
from .recurrent import Recurrent

__all__ = ["OrthogonalRNNCell", "UnitaryRNNCell"]


class _RNNCell(Recurrent, torch.nn.RNNCell):
    offset: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "modrelu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        k: int | None = 1,
        retraction: str = "exponential",
        sketch: str = "tangent",
        init: str = "henaff",
    ) -> None:
        manifold = LowRankUnitary(k, retraction=retraction, sketch=sketch)
        known, dtype = self._options(nonlinearity, init, dtype)
        super().__init__(input_size, hidden_size, bias, known, device=device, dtype=dtype)
        self._finish(nonlinearity, manifold, ["weight_hh"])

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        if not self.is_complex and self.nonlinearity != "modrelu":
            return super().forward(input, hx)
        return self._run(input, hx)

    @full_precision
    def _run(self, x: Tensor, hx: Tensor | None) -> Tensor:
        z = linear(self._checked("input", x, self.input_size), self.weight_ih, self.bias_ih)
        if hx is not None:
            h = self._checked("hidden", hx, self.hidden_size)
            z = z + linear(h, self.weight_hh, self.bias_hh)
        elif self.bias_hh is not None:
            z = z + self.bias_hh
        if self.nonlinearity == "modrelu":
            return modrelu(z, self.offset)
        function = torch.relu if self.nonlinearity == "relu" else torch.tanh
        return torch.view_as_complex(function(torch.view_as_real(z)))

    def _checked(self, name: str, x: Tensor, size: int) -> Tensor:
        if x.dim() not in (1, 2):
            raise ValueError(f"RNNCell: Expected {name} to be 1D or 2D, got {x.dim()}D instead")
        if x.shape[-1] != size:
            raise RuntimeError(
                f"{name} has inconsistent {name}_size: got {x.shape[-1]} expected {size}"
            )
        dtype = self.weight_hh.dtype
        return x.to(dtype) if self.is_complex and x.dtype == dtype.to_real() else x

    def extra_repr(self) -> str:
        """Return torch's description, and what is particular to these cells."""
        plain = torch.nn.RNNCell.extra_repr(self).split(", nonlinearity=")[0]
        return plain + self._describe(self.weight_hh)


class OrthogonalRNNCell(_RNNCell):
    r"""A torch.nn.RNNCell whose recurrent weight is orthogonal.

    One time step of :class:`OrthogonalRNN`, differentiable any number of times. Arguments, inputs
    and outputs are those of torch.nn.RNNCell; ``nonlinearity`` and what follows ``dtype`` are
    those of :class:`OrthogonalRNN`. A loop of cells is slower than the layer and keeps more.

    Attributes
    ----------
    weight_ih, bias_ih, bias_hh : torch.nn.Parameter
        (n, inputs), (n,), (n,)
    weight_hh : geoopt.ManifoldParameter
        (n, n)
    offset : torch.nn.Parameter
        (n,), of a modReLU

    Examples
    --------
    >>> cell = OrthogonalRNNCell(3, 8)
    >>> h = cell(torch.randn(2, 3))
    >>> cell(torch.randn(2, 3), h).shape
    torch.Size([2, 8])
    """

    is_complex: ClassVar[bool] = False


class UnitaryRNNCell(_RNNCell):
    """A recurrent cell with a complex state and a unitary recurrent weight.

    One time step of :class:`UnitaryRNN`, as :class:`OrthogonalRNNCell` is of OrthogonalRNN.

    Examples
    --------
    >>> UnitaryRNNCell(3, 8)(torch.randn(2, 3)).dtype
    torch.complex64
    """

    is_complex: ClassVar[bool] = True
