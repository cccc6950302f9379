"""One step of a recurrent layer."""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..arguments import checked_integer
from ..linalg.precision import full_precision
from ..low_rank_manifold import Rank
from ..manifolds import LowRankUnitary
from .activation import activated
from .recurrent import Recurrent, taken_as
from .transforms import bound_to, needs_torch_operations

__all__ = ["OrthogonalRNNCell", "UnitaryRNNCell"]


class RecurrentCell(Recurrent, torch.nn.RNNCellBase):
    """A torch.nn.RNNCell or torch.nn.GRUCell whose recurrent weight is on a manifold.

    A subclass names one of these as its last base and says what one step does.
    """

    _NAME: ClassVar[str]
    """Of torch's class."""

    def _step(self, x: Tensor, hx: Tensor | None) -> Tensor:
        """Return the next state of a batch."""
        raise NotImplementedError

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Take one step, as torch's class does.

        Parameters
        ----------
        input : torch.Tensor
            (N, input_size) or (input_size)
        hx : torch.Tensor, optional
            (N, hidden_size) or (hidden_size); zero if not given

        Returns
        -------
        torch.Tensor
            the next state, in the form of ``hx``

        Raises
        ------
        ValueError, RuntimeError
            If a dtype or a shape does not fit, as torch's class raises them.
        """
        for name, x in (("input", input), ("hidden", hx)):
            if x is not None and x.dim() not in (1, 2):
                raise ValueError(
                    f"{self._NAME}: Expected {name} to be 1D or 2D, got {x.dim()}D instead"
                )
        if hx is not None and hx.dim() != input.dim():
            raise ValueError(
                f"{self._NAME}: Expected input and hidden to have as many dimensions as each "
                f"other, got {input.dim()}D and {hx.dim()}D"
            )
        if input.is_complex() and not self.is_complex:
            raise ValueError(
                f"{self._NAME} input dtype ({input.dtype}) is complex but {type(self).__name__} is "
                f"real. {self._remedy_for_complex_input()}"
            )
        dtype = self.weight_hh.dtype
        x, h = taken_as(input, dtype), None if hx is None else taken_as(hx, dtype)
        if input.dim() == 2:
            return self._run(x, h)
        # Not by a call of the module, which would run hooks twice.
        return self._run(x.unsqueeze(0), None if h is None else h.unsqueeze(0)).squeeze(0)

    @full_precision
    def _run(self, x: Tensor, hx: Tensor | None) -> Tensor:
        if x.shape[1] != self.input_size:
            raise RuntimeError(
                f"input has inconsistent input_size: got {x.shape[1]} expected {self.input_size}"
            )
        if hx is not None:
            self._check_hidden(hx, x.shape[0])
            hx = bound_to(hx, (x.shape[0], self.hidden_size))
        return self._step(x, hx)

    def _check_hidden(self, hx: Tensor, batch: int) -> None:
        if hx.shape[0] != batch:
            raise RuntimeError(
                f"Input batch size {batch} doesn't match hidden0 batch size {hx.shape[0]}"
            )
        if hx.shape[1:] != (self.hidden_size,):
            raise RuntimeError(
                f"hidden0 has inconsistent hidden_size: got {hx.shape[-1]}, "
                f"expected {self.hidden_size}"
            )

    def extra_repr(self) -> str:
        """Return torch's description, and what is particular to these cells."""
        plain = super().extra_repr().split(", nonlinearity=")[0]
        return plain + self._describe(getattr(self, "weight_hh", None))


class _RNNCell(RecurrentCell, torch.nn.RNNCell):
    _NAME = "RNNCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "modrelu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        k: Rank = "auto",
        retraction: str = "exponential",
        sketch: str = "tangent",
        init: str = "henaff",
    ) -> None:
        manifold = LowRankUnitary(k, retraction=retraction, sketch=sketch)
        known, dtype = self._options(nonlinearity, init, dtype, bias=bias)
        input_size = checked_integer("input_size", input_size, least=0)
        hidden_size = checked_integer("hidden_size", hidden_size)
        super().__init__(input_size, hidden_size, bias, known, device=device, dtype=dtype)
        self._finish(nonlinearity, manifold, ["weight_hh"])

    def _step(self, x: Tensor, hx: Tensor | None) -> Tensor:
        known = not self.is_complex and self.nonlinearity != "modrelu"
        if known and not needs_torch_operations(x, hx, self.weight_ih, self.weight_hh):
            return torch.nn.RNNCell.forward(self, x, hx)
        if hx is None:
            # As in torch's cell every parameter gets a gradient, which DDP waits for.
            hx = x.new_zeros(*x.shape[:-1], self.hidden_size)
        z = linear(x, self.weight_ih, self.bias_ih) + linear(hx, self.weight_hh, self.bias_hh)
        return activated(z, self.nonlinearity, self._offset())


class OrthogonalRNNCell(_RNNCell):
    r"""A torch.nn.RNNCell whose recurrent weight is orthogonal.

    One time step of :class:`OrthogonalRNN`, differentiable any number of times. Arguments, inputs
    and outputs are those of torch.nn.RNNCell; ``nonlinearity`` and what follows ``dtype`` are
    those of :class:`OrthogonalRNN`. A loop of cells is slower than the layer and needs more memory.
    The forward pass runs in the precision of the parameters; the backward pass is torch's own, and
    its products run in the precision that torch's settings, and autocast around it, say.

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
