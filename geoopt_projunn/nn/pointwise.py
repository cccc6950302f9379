r"""What stands between two products of a recurrence, in place.

Each kind maps :math:`z` to :math:`h = \varphi(z)`, and pulls a gradient back through
:math:`\varphi` given h alone.
"""

import torch
from torch import Tensor


class Pointwise:
    """A function of every entry; ``offset`` is None but for a modReLU."""

    def __init__(self, offset: Tensor | None) -> None:
        self.offset = offset

    def forward_(self, z: Tensor) -> None:
        """Replace z by h."""
        raise NotImplementedError

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        """Replace the gradient of h by that of z."""
        raise NotImplementedError


class _ReLU(Pointwise):
    """max(0, z); of both parts of a complex z."""

    def forward_(self, z: Tensor) -> None:
        _parts(z).relu_()

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        grad, h = _parts(grad), _parts(h)
        torch.ops.aten.threshold_backward.grad_input(grad, h, 0, grad_input=grad)


class _Tanh(Pointwise):
    """tanh z; of both parts of a complex z."""

    def forward_(self, z: Tensor) -> None:
        _parts(z).tanh_()

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        grad, h = _parts(grad), _parts(h)
        torch.ops.aten.tanh_backward.grad_input(grad, h, grad_input=grad)


class _RealModReLU(Pointwise):
    """sgn(z) max(0, |z| + b) of a real z: the derivative is 1 where h is not 0."""

    def forward_(self, z: Tensor) -> None:
        assert self.offset is not None
        sign = z.sgn()
        torch.addcmul(self.offset, z, sign, out=z)
        z.relu_().mul_(sign)

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        torch.ops.aten.hardshrink_backward.grad_input(grad, h, 0, grad_input=grad)


class _ComplexModReLU(Pointwise):
    r"""z / |z| max(0, |z| + b) of a complex z.

    With the phase :math:`p = h / |h| = z / |z|` and :math:`w = \bar p\, g`, the gradient of z is
    :math:`p (\operatorname{Re} w + i \frac{|h|}{|z|} \operatorname{Im} w)`, and
    :math:`|z| = |h| - b` where h is not 0.
    """

    def __init__(self, offset: Tensor | None) -> None:
        super().__init__(offset)
        assert offset is not None
        info = torch.finfo(offset.dtype)
        # |h| - b has the rounding of b; below it the ratio would have no correct digit.
        self.floor = (offset * info.eps).clamp(min=info.tiny**0.5)

    def forward_(self, z: Tensor) -> None:
        assert self.offset is not None
        phase = z.sgn()
        torch.mul(phase, (z.abs() + self.offset).relu_(), out=z)

    def backward_(self, grad: Tensor, h: Tensor) -> None:
        assert self.offset is not None
        modulus, phase = h.abs(), h.sgn()
        modulus /= torch.maximum(modulus - self.offset, self.floor)
        grad.mul_(phase.conj())
        torch.view_as_real(grad)[..., 1].mul_(modulus)
        grad.mul_(phase)


def _parts(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


POINTWISE: dict[tuple[str, bool], type[Pointwise]] = {
    ("modrelu", False): _RealModReLU,
    ("modrelu", True): _ComplexModReLU,
    ("relu", False): _ReLU,
    ("relu", True): _ReLU,
    ("tanh", False): _Tanh,
    ("tanh", True): _Tanh,
}
"""By nonlinearity, and whether its argument is complex."""
