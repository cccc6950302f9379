"""What orthogonal convolutions with small kernels, of one and two dimensions, have in common."""

from collections.abc import Sequence
from typing import Any

import geoopt
import torch

from ...low_rank_manifold import LowRankManifold, Rank
from ..arguments import assert_dtype_of_layer, checked_dtype, positive_tuple
from ..remembered import Remembered, are_comparable
from ..starting import RECTANGULAR, manifold_for, start_at
from ..transforms import is_exported
from .block_kernels import alternating_axes, block_kernel
from .circular import circular_convolution, fold, pad, padding_before, paddings
from .convolution import OrthogonalConvolution

__all__ = ["BlockConv"]

_CONVOLVE = {1: torch.nn.functional.conv1d, 2: torch.nn.functional.conv2d}
_CONVOLVE_BACK: dict[int, Any] = {
    1: torch.nn.functional.conv_transpose1d,
    2: torch.nn.functional.conv_transpose2d,
}
_AXES = {1: "length", 2: "height, width"}


class BlockConv(OrthogonalConvolution):
    """What all layers share; a subclass says how many dimensions a signal has."""

    weight: geoopt.ManifoldParameter
    projectors: geoopt.ManifoldParameter | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int = 1,
        bias: bool = True,
        *,
        init: str = "haar",
        k: Rank = "auto",
        retraction: str = "exponential",
        sketch: str = "tangent",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._set_channels(in_channels, out_channels, stride, bias, init, RECTANGULAR)
        self.kernel_size = positive_tuple("kernel_size", kernel_size, self._dims)
        if min(self.kernel_size) < self.stride:
            raise ValueError(
                f"`kernel_size` must be at least `stride` = {self.stride} on every axis, got "
                f"{kernel_size}: pixels between the kernels would be lost."
            )
        dtype = checked_dtype(self, dtype, False, self._counterpart())
        half, filters = self.channels // 2, sum(self.kernel_size) - self.stride * self._dims
        shapes = {
            "weight": (self.out_channels, self.channels * self.stride**self._dims),
            "projectors": (filters, self.channels, half) if filters and half else None,
        }
        for name, shape in shapes.items():
            if shape is None:
                self.register_parameter(name, None)
                continue
            manifold = _manifold(shape[-2:], k, retraction=retraction, sketch=sketch)
            empty = torch.empty(shape, dtype=dtype, device=device)
            setattr(self, name, geoopt.ManifoldParameter(empty, manifold=manifold))
        self._remembered = Remembered()
        self._finish(bias, dtype, device)

    @property
    def channels(self) -> int:
        """How many channels the filters have, ``max(in_channels, out_channels // stride**d)``."""
        return max(self.in_channels, self.out_channels // self.stride**self._dims)

    def _start(self) -> None:
        start_at(self.weight, self.init)
        if self.projectors is not None:
            if self.init == "identity":
                self.projectors.copy_(self._shifts())
            else:
                start_at(self.projectors, self.init)

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride > 1 and is_exported():
            # torch.jit.trace records operations, and none of the checks of sizes.
            for axis in range(2, x.dim()):
                x = x.unflatten(axis, (-1, self.stride)).flatten(axis, axis + 1)
        x = pad(x, paddings(self.kernel_size, self.stride))
        convolved: torch.Tensor = _CONVOLVE[self._dims](x, self._kernel(), self.bias, self.stride)
        return convolved

    def _convolve_back(self, y: torch.Tensor) -> torch.Tensor:
        x = _CONVOLVE_BACK[self._dims](y, self._kernel(), stride=self.stride)
        return fold(x, paddings(self.kernel_size, self.stride))

    def kernel(self) -> torch.Tensor:
        r"""Make the kernel, (out_channels, in_channels, \*kernel_size), with its gradients."""
        blocks = self.weight.unflatten(1, (self.channels, *(self.stride,) * self._dims))
        if self.projectors is not None:
            axes = alternating_axes([n - self.stride for n in self.kernel_size])
            return block_kernel(blocks, self.projectors.unbind(), axes, self.in_channels)
        kernel = blocks[:, : self.in_channels]
        before = padding_before(self.kernel_size, self.stride)
        around: list[int] = []
        for n, left in zip(self.kernel_size, before, strict=True):
            around = [left, n - self.stride - left, *around]
        return torch.nn.functional.pad(kernel, around)

    @torch.no_grad()
    def to_conv(self) -> torch.nn.Module:
        """Export the layer as it is now to a plain convolution with circular padding.

        It is a copy for inference: training it would not keep it orthogonal.

        Returns
        -------
        torch.nn.Conv1d or torch.nn.Conv2d
            of the same ``kernel_size``, ``padding_mode = "circular"``
        """
        return circular_convolution(self.kernel(), self.stride, self.bias)

    def _extent(self) -> str:
        return f"kernel_size={self.kernel_size}"

    def _kernel(self) -> torch.Tensor:
        """Return the kernel, in evaluation without gradients the one made before."""
        made_of = [p for p in (self.weight, self.projectors) if p is not None]
        differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in made_of)
        if self.training or differentiable or not are_comparable(made_of):
            return self.kernel()
        return self._remembered(self.kernel, made_of)

    def _shifts(self) -> torch.Tensor:
        """Return columns of the identity, by which each channel is shifted about as often."""
        assert self.projectors is not None
        c, half = self.projectors.shape[1:]
        # On each axis the filters take half of the channels, then the other half, and so on.
        axes = alternating_axes([n - self.stride for n in self.kernel_size])
        place: Any = {"device": self.projectors.device}
        turns = torch.tensor([axes[:i].count(axis) for i, axis in enumerate(axes)], **place)
        chosen = (turns[:, None] * half + torch.arange(half, **place)) % c
        return torch.eye(c, dtype=self.projectors.dtype, **place)[chosen].mT

    def _batch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        dims, dtype = self._dims, self.weight.dtype
        is_input = name == "input"
        channels, stride = (self.in_channels, 1) if is_input else (self.out_channels, self.stride)
        if x.is_complex():
            raise TypeError(
                f"`{name}` must be real for {type(self).__name__}, got {x.dtype}; "
                "convolve its real and its imaginary part."
            )
        assert_dtype_of_layer(name, x, dtype)
        if x.dim() not in (dims + 1, dims + 2) or x.shape[-dims - 1] != channels:
            axes = _AXES[dims]
            raise ValueError(
                f"`{name}` must have shape (b, {channels}, {axes}) or ({channels}, {axes}), "
                f"got {tuple(x.shape)}."
            )
        size = tuple(n * stride for n in x.shape[-dims:])
        if any(n % self.stride for n in size):
            raise ValueError(
                f"`stride` = {self.stride} must divide the spatial size of `{name}` on every "
                f"axis, got {size}; pad or crop the signal."
            )
        if any(n < least for n, least in zip(size, self.kernel_size, strict=True)):
            what = "" if stride == 1 else f" times `stride` = {stride}"
            raise ValueError(
                f"`{name}` must have a spatial size{what} of at least `kernel_size` = "
                f"{self.kernel_size}, got {tuple(x.shape[-dims:])}; take a smaller kernel, or "
                f"OrthogonalConv{dims}d, whose kernel is as large as the signal."
            )
        return x if x.dim() > dims + 1 else x.unsqueeze(0)


def _manifold(shape: Sequence[int], k: Rank, **options: Any) -> LowRankManifold:
    """Return the manifold of one parameter, with k cut to what its shape allows."""
    manifold = manifold_for(shape, k, **options)
    highest, _ = manifold.highest_rank(*shape)
    if not isinstance(manifold.k, int) or manifold.k <= highest:
        return manifold
    return manifold_for(shape, highest or None, **options)
