r"""The exact geometry of matrices with orthonormal columns or rows, with the canonical metric."""

from typing import ClassVar

import torch

from ..linalg.polar_factor import PolarFactor
from ..linalg.precision import full_precision
from .checks import assert_like
from .orthonormal import OrthonormalGeometry, euclidean_inner


class StiefelGeometry(OrthonormalGeometry):
    r"""Points of any shape with the canonical metric.

    :math:`\langle u, v \rangle = \operatorname{Re tr}(u^H (I - \frac12 x x^H) v)`, x tall. It
    weighs the generators of tangent vectors, :math:`\frac12 \operatorname{Re tr}
    (\Omega_u^H \Omega_v)`, so that its geodesics are :math:`\exp(t \Omega)\, x`.

    References
    ----------
    Edelman, Arias, Smith, *The Geometry of Algorithms with Orthogonality Constraints*,
    SIAM J. Matrix Anal. Appl. 20, 1998.
    """

    # The gradient of this metric is (d xᴴ - x dᴴ) x.
    _factor: ClassVar[float] = 2.0

    @staticmethod
    def highest_rank(n: int, p: int) -> tuple[int, str]:
        """Return the largest k of points (n, p), and its rule in words."""
        n, p = max(n, p), min(n, p)
        return min(p, n // 2), "min(p, n // 2)"

    @full_precision
    def inner(
        self,
        x: torch.Tensor,
        u: torch.Tensor,
        v: torch.Tensor | None = None,
        *,
        keepdim: bool = False,
    ) -> torch.Tensor:
        r"""Return :math:`\operatorname{Re tr}(u^H (I - \frac12 x x^H) v)`, real, (*) or (*, 1, 1).

        The sum over the blocks, if a point has several. :math:`O(np^2)`.
        """
        v = u if v is None else v
        assert_like(x, u=u, v=v)
        x, u, v = (self.points(t) for t in (x, u, v))
        inside = x.mH @ u
        of_normal = euclidean_inner(inside, inside if v is u else x.mH @ v)
        inner = euclidean_inner(u, v) - of_normal / 2
        inner = inner if self.blocks == 1 else inner.sum(-1)
        return inner[..., None, None] if keepdim else inner

    @full_precision
    def proju(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Project on the tangent space, :math:`u - x \operatorname{herm}(x^H u)`, x tall.

        Orthogonally in the canonical metric and in the Euclidean one; exact, :math:`O(np^2)`.
        """
        (x, u), shape = self._flatten(x=x, u=u)
        product = x.mH @ u
        return self._shaped(u - x @ ((product + product.mH) / 2), shape)

    @full_precision
    def transp(self, x: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        r"""Transport v from x to y by a rotation that takes x to y and moves little else.

        The unitary matrix nearest to :math:`y x^H + (I - yy^H)(I - xx^H)` (one of them, if
        :math:`x^H y` is singular), times v. Isometric and exact. For n > p it differs in general
        from :meth:`transp_follow_retr`, which depends on the path from x to y.
        :math:`O(np^2)`.
        """
        (x, y, v), shape = self._flatten(x=x, y=y, v=v)
        inside, across = x.mH @ v, x.mH @ y
        # The polar factor of (I - yyᴴ)(I - xxᴴ) on the complement of x is I - yyᴴ times
        # I - x f (I + h)⁻¹ yᴴ, with f the polar factor of xᴴy and h = fᴴ xᴴy.
        factor: torch.Tensor = PolarFactor.apply(across, False)  # type: ignore[no-untyped-call]
        h = factor.mH @ across
        outside = v - x @ inside
        # Of a positive semidefinite h: well conditioned.
        eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
        outside = outside - x @ (factor @ torch.linalg.solve(eye + h, y.mH @ outside))
        return self._shaped(y @ (inside - y.mH @ outside) + outside, shape)

    def dist(self, x: torch.Tensor, y: torch.Tensor, *, keepdim: bool = False) -> torch.Tensor:
        """Raise NotImplementedError: see :meth:`logmap`."""
        raise NotImplementedError(_NO_LOGARITHM.format("dist", "‖x - y‖ in its place"))

    def logmap(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Raise NotImplementedError: the shortest geodesic has no formula in closed form."""
        raise NotImplementedError(_NO_LOGARITHM.format("logmap", "proju(x, y - x) in its place"))


_NO_LOGARITHM = (
    "`{}` is not available: the shortest geodesic between rectangular points has no formula in "
    "closed form, and iterations find it only for points that are near each other. Take {}, or "
    "LowRankUnitary for square points."
)
