r"""What stands between two products of a recurrence, in place.

Each kind maps :math:`z` to :math:`h = \varphi(z)`, and pulls a gradient back through
:math:`\varphi` given h alone. For H = 128 and a batch of 64 each operation here costs a
twentieth to a third of the product beside it, which is what their choice is about. On a GPU each
operation is a launch, which is why there a modReLU is one kernel.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..activation import least_divisor
from ..kernels.launching import serve

if TYPE_CHECKING:
    from ...backends.triton.repeated import Repeated


class Pointwise:
    """A function of every entry."""

    def __init__(self, offset: Tensor | None) -> None:
        del offset  # of a modReLU

    def forward_(self, z: Tensor) -> None:
        """Replace z by h."""
        raise NotImplementedError

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        """Replace the gradient of h by that of z."""
        raise NotImplementedError

    def watch_offset(self, h: Tensor) -> None:
        """Sum the gradient of an offset in the steps to come, each of at most h's rows."""

    def offset_gradient(self) -> Tensor | None:
        """Return what the steps since :meth:`watch_offset` add up to, if it was called."""
        return None


class _ReLU(Pointwise):
    """max(0, z); of both parts of a complex z."""

    def forward_(self, z: Tensor) -> None:
        parts(z).relu_()

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        grad, h = parts(grad), parts(h)
        torch.ops.aten.threshold_backward.grad_input(grad, h, 0, grad_input=grad)


class _Tanh(Pointwise):
    """tanh z; of both parts of a complex z."""

    def forward_(self, z: Tensor) -> None:
        parts(z).tanh_()

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        grad, h = parts(grad), parts(h)
        torch.ops.aten.tanh_backward.grad_input(grad, h, grad_input=grad)


class PointwiseModReLU(Pointwise):
    r"""z / |z| max(0, |z| + b).

    h moves with b along its phase :math:`p = h / |h|`, so that the gradient of b is the sum of
    :math:`\operatorname{Re} \bar p g` over all steps, g the gradient of h.
    """

    def __init__(self, offset: Tensor | None) -> None:
        self.offset = offset
        self.along: Tensor | None = None
        """The gradient of the offset, row by row, if it is watched."""

    def watch_offset(self, h: Tensor) -> None:
        """Begin a sum for each row."""
        self.along = torch.zeros_like(h.real)

    def offset_gradient(self) -> Tensor | None:
        """Return the sum over the rows."""
        return None if self.along is None else self.along.sum(0)

    def _watch(self, along: Tensor) -> None:
        if self.along is not None:
            rows = along.shape[0]
            total = self.along if rows == self.along.shape[0] else self.along[:rows]
            total.add_(along)


class _RealModReLU(PointwiseModReLU):
    """The derivative is 1 where h is not 0: it needs no offset."""

    def forward_(self, z: Tensor) -> None:
        assert self.offset is not None
        sign = z.sgn()
        torch.addcmul(self.offset, z, sign, out=z)
        z.relu_().mul_(sign)

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        sign = h.sgn()
        grad.mul_(sign)
        self._watch(grad)
        grad.mul_(sign)


class _ComplexModReLU(PointwiseModReLU):
    r"""With :math:`w = \bar p g` z has the gradient :math:`p (\Re w + i \rho\, \Im w)`.

    The ratio :math:`\rho = |h| / |z|`, and :math:`|z| = |h| - b` where h is not 0.
    """

    def __init__(self, offset: Tensor | None) -> None:
        super().__init__(offset)
        assert offset is not None
        self._offset = offset
        info = torch.finfo(offset.dtype)
        self._tiny = least_divisor(offset.dtype)
        # |h| - b has the rounding of b; below that the ratio would have no correct digit.
        self._floor = (offset * info.eps).clamp(min=self._tiny)

    def forward_(self, z: Tensor) -> None:
        modulus = _modulus(z)
        shifted = torch.add(modulus, self._offset).relu_()
        z.mul_(shifted.div_(modulus.clamp_(min=self._tiny)))

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        modulus = _modulus(h)
        phase = h * modulus.clamp(min=self._tiny).reciprocal_()
        ratio = modulus.div_(torch.maximum(modulus - self._offset, self._floor))
        grad.mul_(phase.conj())
        self._watch(grad.real)
        grad.imag.mul_(ratio)
        grad.mul_(phase)


class _ModReLUInKernels(PointwiseModReLU):
    """The same, one launch each way."""

    def __init__(self, offset: Tensor | None) -> None:
        super().__init__(None if offset is None else offset.contiguous())
        from ..kernels import modrelu

        self._kernels = modrelu
        self._forward: Repeated | None = None
        self._backward: Repeated | None = None

    def watch_offset(self, h: Tensor) -> None:
        super().watch_offset(h)
        self._backward = None

    def forward_(self, z: Tensor) -> None:
        if self._forward is None:
            assert self.offset is not None
            self._forward = self._kernels.forward(z, self.offset)
        self._forward(z)

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        if self._backward is None:
            self._backward = self._kernels.backward(grad, h, self.offset, self.along)
        self._backward(grad, h)


def _modulus(z: Tensor) -> Tensor:
    # On a CPU, abs of a complex tensor takes twice the time of this, and hypot of its parts too.
    return torch.hypot(z.real.contiguous(), z.imag.contiguous()) if z.is_cpu else z.abs()


def parts(x: Tensor) -> Tensor:
    """View complex numbers as pairs of real ones, and real ones as they are."""
    return torch.view_as_real(x) if x.is_complex() else x


POINTWISE: dict[tuple[str, bool], type[Pointwise]] = {
    ("modrelu", False): _RealModReLU,
    ("modrelu", True): _ComplexModReLU,
    ("relu", False): _ReLU,
    ("relu", True): _ReLU,
    ("tanh", False): _Tanh,
    ("tanh", True): _Tanh,
}
"""By nonlinearity, and whether its argument is complex; in torch's operations."""


def pointwise_for(nonlinearity: str, z: Tensor, offset: Tensor | None) -> Pointwise:
    """Return what a recurrence of arguments like ``z`` applies to each of them."""
    if nonlinearity == "modrelu" and serve(z):
        return _ModReLUInKernels(offset)
    return POINTWISE[nonlinearity, z.is_complex()](offset)
