"""Distances between unitary matrices, and the derivatives of the logarithm they take."""

from typing import Any

import torch

from .dense import has_negative_determinant, skewh
from .logarithm import unitary_log
from .polar_factor import PolarFactor, polar_derivative
from .precision import WIDE, full_precision
from .stacks import OfStacks


class GeodesicDistance(OfStacks):
    r"""The geodesic distance :math:`d = \lVert \log(y x^H) \rVert_F`, differentiable twice.

    Infinite between real matrices whose determinants differ in sign: no path joins them.
    The gradients are :math:`\nabla_y d = Ly / d` and :math:`\nabla_x d = -Lx / d` with
    :math:`L = \log(yx^H)`, zero at :math:`d = 0`, where there is no second derivative: it is NaN.
    Off the manifold the distance is taken to be that of the polar factor of :math:`yx^H`.
    """

    @staticmethod
    @full_precision
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the distances, (*), for x and y of equal shape (*, n, n)."""
        wide = WIDE[x.dtype]
        relative = y.to(wide) @ x.to(wide).mH
        distance = torch.linalg.vector_norm(torch.linalg.eigvals(relative).angle(), dim=-1)
        if not x.is_complex():
            apart = has_negative_determinant(relative)
            distance = torch.where(apart, torch.inf, distance)
        return distance.to(x.real.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        """Keep the points, and which of them coincide or are apart."""
        ctx.save_for_backward(*inputs, output)
        ctx.save_for_forward(*inputs, output)

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradients with respect to x and y."""
        x, y, distance = ctx.saved_tensors
        return _gradients(x, y, distance, grad)

    @staticmethod
    @full_precision
    def jvp(ctx: Any, dx: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        """Return the derivative in the direction (dx, dy)."""
        x, y, distance = ctx.saved_tensors
        along_x, along_y = _gradients(x, y, distance, torch.ones_like(distance))
        products = along_x.conj() * dx + along_y.conj() * dy
        return products.real.sum((-2, -1))


def _gradients(
    x: torch.Tensor, y: torch.Tensor, distance: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``grad`` times the gradients of the distances with respect to x and y."""
    wide, dtype = WIDE[x.dtype], x.dtype
    x, y = x.to(wide), y.to(wide)
    relative = y @ x.mH
    rotation: torch.Tensor = PolarFactor.apply(relative, False)  # type: ignore[no-untyped-call]
    log: torch.Tensor = Logarithm.apply(rotation)  # type: ignore[no-untyped-call]
    same = distance <= x.shape[-1] * torch.finfo(dtype).eps
    # Where two points coincide, zero without a derivative: the square root's is infinite.
    length = ((log * log.conj()).real.sum((-2, -1)) * ~same).sqrt()
    scale = (grad * length / (length.square() + same.to(length.dtype))).where(
        distance.isfinite(), 0
    )
    of_relative = polar_derivative(relative, rotation, scale[..., None, None] * (log @ rotation))
    return (of_relative.mH @ y).to(dtype), (of_relative @ x).to(dtype)


class Logarithm(OfStacks):
    r"""The principal logarithm of unitary matrices, along the manifold, differentiable once.

    With :math:`L = Q \operatorname{diag}(i\theta) Q^H` the derivative along :math:`y\Omega` is
    :math:`Q (M \circ Q^H \Omega Q) Q^H`, :math:`M_{ij} = e^{i\varphi/2} \frac{\varphi/2}{\sin
    (\varphi/2)}` and :math:`\varphi = \theta_i - \theta_j` (Daleckii and Krein). It is infinite
    at the cut locus, where two eigenvalues meet at -1 from both sides.
    """

    @staticmethod
    def forward(y: torch.Tensor) -> torch.Tensor:
        """Return the logarithms of y, (*, n, n)."""
        return unitary_log(y)

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        """Return the gradient with respect to y, tangent to the manifold."""
        y, log = ctx.saved_tensors
        return y @ _LogDerivative.apply(log, skewh(grad), True)  # type: ignore[no-untyped-call]

    @staticmethod
    @full_precision
    def jvp(ctx: Any, dy: torch.Tensor) -> torch.Tensor:
        """Return the derivative along dy, tangent to the manifold."""
        y, log = ctx.saved_tensors
        return _LogDerivative.apply(log, skewh(y.mH @ dy), False)  # type: ignore[no-untyped-call]


class _LogDerivative(OfStacks):
    """The derivative of the logarithm along a skew-Hermitian generator, or its adjoint's."""

    @staticmethod
    @full_precision
    def forward(log: torch.Tensor, generator: torch.Tensor, adjoint: bool) -> torch.Tensor:
        angles, q = torch.linalg.eigh(-1j * log)
        half = (angles.unsqueeze(-1) - angles.unsqueeze(-2)) / 2
        factor = torch.polar(1 / torch.sinc(half / torch.pi), -half if adjoint else half)
        small = q.mH @ generator.to(q.dtype) @ q
        product = q @ torch.where(small == 0, 0, factor * small) @ q.mH
        return product if log.is_complex() else product.real

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        log, _, ctx.adjoint = inputs
        ctx.save_for_backward(log)
        ctx.save_for_forward(log)

    @staticmethod
    @full_precision
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[None, torch.Tensor, None]:
        if ctx.needs_input_grad[0]:
            _refuse()
        (log,) = ctx.saved_tensors
        return None, _LogDerivative.apply(log, grad, not ctx.adjoint), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *_: Any) -> torch.Tensor:
        return _refuse()


def _refuse() -> Any:
    raise RuntimeError(
        "`logmap` can be differentiated once and `dist` twice, but a higher derivative was asked "
        "for; take finite differences of derivatives instead."
    )
