r"""What orthogonal convolutions of all dimensions, real or complex, have in common."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import geoopt
import torch

from ...backends import products_for
from ...init import INITS
from ...linalg.precision import full_precision
from ...low_rank_manifold import Rank
from ...manifolds import LowRankUnitary
from ..arguments import assert_dtype_of_layer, checked_dtype, positive_tuple
from ..starting import assert_fits, start_at
from ..transforms import bound_to, needs_torch_operations
from .channels import channels_to_pixels, pixels_to_channels
from .circular import circular_convolution, padding_before
from .convolution import OrthogonalConvolution

__all__ = ["FullWidthConv"]


class _Multiply(torch.autograd.Function):
    """Multiply the channels at every frequency: (f, b, c) by (f, d, c) to (f, b, d)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x, w)
        return x @ w.mT

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        x, w = ctx.saved_tensors
        # Conjugates of the signals, which take less memory than those of the matrices.
        grad_x = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_x = products_for(w).times(grad.conj(), w).conj()
        if ctx.needs_input_grad[1]:
            grad_w = grad.mT @ x.conj()
        return grad_x, grad_w


def _multiply(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    if needs_torch_operations(x, w):
        return x @ w.mT
    return _Multiply.apply(x, w)  # type: ignore[no-untyped-call]


class FullWidthConv(OrthogonalConvolution):
    """What all layers share; a subclass says how a signal becomes coordinates and back."""

    _complex: ClassVar[bool]
    weight: geoopt.ManifoldParameter

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int | Sequence[int],
        stride: int = 1,
        bias: bool = True,
        *,
        init: str = "identity",
        k: Rank = "auto",
        retraction: str = "exponential",
        sketch: str = "tangent",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self._set_channels(in_channels, out_channels, stride, bias, init, INITS)
        self.size = positive_tuple("size", size, self._dims)
        if any(n % self.stride for n in self.size):
            raise ValueError(
                f"`stride` must divide `size` = {self.size} on every axis, got {stride}; "
                "choose another stride, or pad the input to a multiple of it."
            )
        manifold = LowRankUnitary(k, retraction=retraction, sketch=sketch)
        dtype = checked_dtype(self, dtype, self._complex, self._counterpart())
        for name, count in self._counts().items():
            shape = (count, self.channels, self.channels)
            of_weight = dtype.to_complex() if name == "weight" else dtype
            empty = torch.empty(shape, dtype=of_weight, device=device)
            assert_fits(name, self, empty, manifold)
            setattr(self, name, geoopt.ManifoldParameter(empty, manifold=manifold))
        self._finish(bias, dtype, device)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # In the metadata, beside the version: older checkpoints would seem to lack a key for it.
        metadata = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if metadata is not None:
            metadata["grid"] = self.grid

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local_metadata: Any, *args: Any
    ) -> None:
        grid, own = tuple(local_metadata.get("grid", self.grid)), self._counts()
        # Replicas and parametrized layers hold them elsewhere.
        held = {prefix + name: self._parameters.get(name) for name in own}
        matrices = {key: p for key, p in held.items() if p is not None}
        shapes = {key: getattr(state_dict.get(key), "shape", None) for key in held}
        # Other shapes torch reports. Other counts are those of values that were replaced since.
        is_alike = shapes == {key: p.shape for key, p in matrices.items()}
        if grid != self.grid and is_alike and self._counts_of(grid) == own:
            *_, error_msgs = args
            error_msgs.append(
                f"`{prefix}weight` was saved by a layer with an output of {_by(grid)}, and this "
                f"one, {self}, has an output of {_by(self.grid)}: shapes agree, but the matrices "
                "are those of other frequencies. Build the layer with the `size` and `stride` of "
                "the saved one. If you have converted the matrices, load `dict(state_dict)`, "
                "which does not say where they are from."
            )
            state_dict.update(matrices)  # so that they are not copied
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    @property
    def grid(self) -> tuple[int, ...]:
        """The spatial size of the output, ``size / stride``."""
        return tuple(n // self.stride for n in self.size)

    @property
    def channels(self) -> int:
        """The size of the matrices, ``max(in_channels * stride**d, out_channels)``."""
        return max(self.in_channels * self.stride**self._dims, self.out_channels)

    def _start(self) -> None:
        for name in self._counts():
            start_at(getattr(self, name), self.init)

    @torch.no_grad()
    def to_conv(self) -> torch.nn.Module:
        """Export the layer as it is now to a plain convolution with circular padding.

        Equal to rounding, with a kernel as large as the image. It is a copy for inference:
        training it would not keep it orthogonal.

        Returns
        -------
        torch.nn.Conv1d, torch.nn.Conv2d or torch.nn.Conv3d
            ``kernel_size = size``, ``padding_mode = "circular"``

        Notes
        -----
        A direct convolution with such a kernel costs the square of the number of pixels; this
        layer is faster.
        """
        count = self.out_channels
        factory: dict[str, Any] = {"dtype": self._dtype, "device": self.weight.device}
        # How the output at the origin depends on each input: a row of the layer's matrix.
        unit = torch.zeros(count, count, *self.grid, **factory)
        unit.flatten(2)[..., 0] = torch.eye(count, **factory)
        rows = self.adjoint(unit).conj()
        kernel = rows.roll(padding_before(self.size, self.stride), tuple(range(2, 2 + self._dims)))
        return circular_convolution(kernel, self.stride, self.bias)

    def _extent(self) -> str:
        return f"size={self.size}"

    @property
    def _dtype(self) -> torch.dtype:
        """The dtype of signals, which is that of the first parameter."""
        dtype: torch.dtype = getattr(self, next(iter(self._counts()))).dtype
        return dtype

    def _counts(self) -> dict[str, int]:
        """Return the names of the parameters on the manifold, and how many matrices each has."""
        return self._counts_of(self.grid)

    @staticmethod
    def _counts_of(grid: tuple[int, ...]) -> dict[str, int]:
        raise NotImplementedError

    def _coordinates(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        raise NotImplementedError

    def _signal(self, coordinates: Sequence[torch.Tensor]) -> torch.Tensor:
        raise NotImplementedError

    def _blocks(self) -> list[torch.Tensor]:
        """Return the part of the matrices that the layer uses.

        With fewer channels at one end, there are fewer rows or columns. The columns left out would
        multiply channels of zeros, and the results of the rows left out would be cut off.
        """
        used = self.in_channels * self.stride**self._dims
        return [getattr(self, name)[:, : self.out_channels, :used] for name in self._counts()]

    def _convolve(self, x: torch.Tensor) -> torch.Tensor:
        y = _of_any_batch(self._convolved, x)
        return y if self.bias is None else y + self.bias.view(-1, *(1,) * self._dims)

    def _convolve_back(self, y: torch.Tensor) -> torch.Tensor:
        return _of_any_batch(self._convolved_back, y)

    @full_precision
    def _convolved(self, x: torch.Tensor) -> torch.Tensor:
        parts = self._coordinates(pixels_to_channels(x, self.stride))
        pairs = zip(parts, self._blocks(), strict=True)
        return self._signal([_multiply(part, block) for part, block in pairs])

    @full_precision
    def _convolved_back(self, y: torch.Tensor) -> torch.Tensor:
        pairs = zip(self._coordinates(y), self._blocks(), strict=True)
        x = self._signal([_multiply(part.conj(), block.mT).conj() for part, block in pairs])
        return channels_to_pixels(x, self.stride)

    def _batch(self, name: str, x: torch.Tensor) -> torch.Tensor:
        is_input = name == "input"
        channels, size = (
            (self.in_channels, self.size) if is_input else (self.out_channels, self.grid)
        )
        kind = "complex" if self._complex else "real"
        if x.is_complex() != self._complex:
            other = f"{'Orthogonal' if self._complex else 'Unitary'}Conv{self._dims}d"
            raise TypeError(
                f"`{name}` must be {kind} for {type(self).__name__}, got {x.dtype}; "
                f"use {other}, or convert it to {self._dtype}."
            )
        if x.dtype != self._dtype:
            assert_dtype_of_layer(name, x, self._dtype)
            x = x.to(self._dtype)
        shape = (channels, *size)
        if x.dim() not in (len(shape), len(shape) + 1) or x.shape[-len(shape)] != channels:
            raise ValueError(
                f"`{name}` must have shape (b, {', '.join(map(str, shape))}) or {shape}, "
                f"got {tuple(x.shape)}."
            )
        if tuple(x.shape[-self._dims :]) != size:
            raise ValueError(
                f"`{name}` must have the spatial size {size}, got {tuple(x.shape[-self._dims :])}: "
                "the layer has a matrix for each frequency of that size; resize or pad the "
                "signal, or build a layer with another `size`."
            )
        x = bound_to(x, size)
        return x if x.dim() > len(shape) else x.unsqueeze(0)


def _of_any_batch(
    convolve: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    """Convolve a batch. FFTs refuse an empty one: it gets one signal of zeros, which is dropped."""
    if x.numel() > 0:
        return convolve(x)
    return convolve(torch.cat((x, x.new_zeros(1, *x.shape[1:]))))[:0]


def _by(grid: tuple[int, ...]) -> str:
    return " x ".join(map(str, grid))
