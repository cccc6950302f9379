"""What orthogonal convolutions have in common, whatever their kernel is made of."""

from typing import Any, ClassVar

import torch

from ...arguments import assert_known, checked_integer
from ..arguments import assert_bias
from ..keeping import KeepsManifolds, record_manifolds
from ..starting import steps_of

__all__ = ["OrthogonalConvolution"]


class OrthogonalConvolution(KeepsManifolds):
    """A convolution from in_channels to out_channels with a bias, and its adjoint.

    A subclass adds the parameters of its kernel, between :meth:`_set_channels` and :meth:`_finish`,
    and says how it convolves a batch.
    """

    _dims: ClassVar[int]
    weight: torch.Tensor
    bias: torch.nn.Parameter | None

    def _set_channels(
        self, in_channels: int, out_channels: int, stride: int, bias: bool, init: str, inits: Any
    ) -> None:
        """Check and keep the arguments that say nothing of the kernel."""
        self.in_channels = checked_integer("in_channels", in_channels)
        self.out_channels = checked_integer("out_channels", out_channels)
        self.stride = checked_integer("stride", stride)
        assert_bias(bias)
        assert_known("init", init, inits)
        self.init = init

    def _finish(self, bias: bool, dtype: torch.dtype, device: torch.device | str | None) -> None:
        """Add the bias, and draw all parameters."""
        offset = torch.empty(self.out_channels, dtype=dtype, device=device) if bias else None
        self.register_parameter("bias", None if offset is None else torch.nn.Parameter(offset))
        record_manifolds(self)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the matrices to ``init``, drawn anew, and the bias to zero."""
        self._start()
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve ``input``, (b, in_channels, *size) or (in_channels, *size)."""
        x = self._batch("input", input)
        y = self._convolve(x)
        return y if input.dim() == x.dim() else y.squeeze(0)

    def adjoint(self, output: torch.Tensor) -> torch.Tensor:
        r"""Apply the transpose, for complex layers the conjugate one, of all but the bias.

        Where out_channels >= in_channels * stride**d, the layer preserves norms and this undoes
        it: ``layer.adjoint(layer(x) - bias)`` is x, ``bias`` of shape (out_channels, 1, ..., 1).

        Parameters
        ----------
        output : torch.Tensor
            (b, out_channels, *grid) or (out_channels, *grid), grid = size / stride

        Returns
        -------
        torch.Tensor
            (b, in_channels, *size) or (in_channels, *size)

        Raises
        ------
        TypeError, ValueError
            as the layer itself does
        """
        y = self._batch("output", output)
        x = self._convolve_back(y)
        return x if output.dim() == y.dim() else x.squeeze(0)

    def extra_repr(self) -> str:
        """Return the arguments that tell two layers apart."""
        stride = "" if self.stride == 1 else f", stride={self.stride}"
        bias = "" if self.bias is not None else ", bias=False"
        return (
            f"{self.in_channels}, {self.out_channels}, {self._extent()}{stride}{bias}"
            f"{steps_of(getattr(self, 'weight', None))}, init={self.init}"
        )

    def _start(self) -> None:
        """Set the matrices to ``init``."""
        raise NotImplementedError

    def _extent(self) -> str:
        """Return the argument that tells how large the kernel is, as it is printed."""
        raise NotImplementedError

    def _batch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """Return the ``input`` or ``output`` of the layer with a batch dimension, or raise."""
        raise NotImplementedError

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _convolve_back(self, y: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError
