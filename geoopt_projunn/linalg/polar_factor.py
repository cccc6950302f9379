r"""The polar factor of a matrix, differentiable any number of times."""

from typing import Any

import torch

from .dense import polar_factor, skewh
from .precision import full_precision
from .rows import is_square
from .stacks import OfStacks


class PolarFactor(OfStacks):
    r"""The polar factor :math:`y = UV^H`, nearest to :math:`x = USV^H`, with its derivative.

    :math:`dy = y\Omega + (I - yy^H)\, dx\, h^{-1}`, where the skew-Hermitian :math:`\Omega` solves
    :math:`h \Omega + \Omega h = y^H dx - dx^H y` with :math:`h = y^H x = VSV^H`: a division by
    :math:`s_i + s_j`, which repeated singular values do not hurt. Where two of them vanish, for
    complex x or n > p one, there is no derivative. As a linear map of :math:`dx` it is its own
    adjoint.

    ``apply(x, is_unitary)`` takes x, (*, n, p), n >= p, which is its own polar factor if
    ``is_unitary``.
    """

    @staticmethod
    @full_precision
    def forward(x: torch.Tensor, is_unitary: bool) -> torch.Tensor:
        """Return the polar factor, (*, n, p), contiguous."""
        if is_unitary:
            return x.clone(memory_format=torch.contiguous_format)
        return polar_factor(x).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Keep the point and its polar factor."""
        x, ctx.is_unitary = inputs
        ctx.save_for_backward(x, output)
        ctx.save_for_forward(x, output)

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the gradient with respect to x."""
        x, y = ctx.saved_tensors
        if ctx.is_unitary and not torch.is_grad_enabled():
            # The projection on the tangent space. It equals the formula below at points of the
            # manifold only, so that its own derivative is another.
            product = y.mH @ grad
            along = y @ skewh(product)
            return (along if is_square(x) else along + (grad - y @ product)), None
        return polar_derivative(x, y, grad), None

    @staticmethod
    @full_precision
    def jvp(ctx: Any, dx: torch.Tensor, _: None) -> torch.Tensor:
        """Return the derivative in the direction dx."""
        x, y = ctx.saved_tensors
        return polar_derivative(x, y, dx)


def polar_derivative(x: torch.Tensor, y: torch.Tensor, dx: torch.Tensor) -> torch.Tensor:
    """Return the derivative of the polar factor y of x along dx, or its adjoint applied to dx."""
    product, h = y.mH @ dx, y.mH @ x
    along: torch.Tensor = y @ _SkewSolution.apply(h, product - product.mH)  # type: ignore[no-untyped-call]
    if is_square(x):
        return along
    return along + torch.linalg.solve(h, dx - y @ product, left=False)


class _SkewSolution(OfStacks):
    r"""The solution of :math:`h\Omega + \Omega h = c`, h positive definite, c skew-Hermitian."""

    @staticmethod
    @full_precision
    def forward(h: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        values, q = torch.linalg.eigh(h)
        # Of a real c the diagonal is zero, also where a singular value is.
        small = skewh(q.mH @ c @ q)
        sums = values.unsqueeze(-1) + values.unsqueeze(-2)
        return q @ torch.where(small == 0, 0, small / sums) @ q.mH

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.save_for_forward(inputs[0], output)

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h, omega = ctx.saved_tensors
        # The operator is its own adjoint, and the solution stays skew-Hermitian.
        w = _SkewSolution.apply(h, skewh(grad))  # type: ignore[no-untyped-call]
        return w @ omega + omega @ w, w

    @staticmethod
    @full_precision
    def jvp(ctx: Any, dh: torch.Tensor, dc: torch.Tensor) -> torch.Tensor:
        h, omega = ctx.saved_tensors
        c = dc - dh @ omega - omega @ dh
        return _SkewSolution.apply(h, c)  # type: ignore[no-untyped-call]
