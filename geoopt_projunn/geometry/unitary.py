r"""The exact geometry of unitary or orthogonal matrices, with the Euclidean metric."""

from typing import ClassVar

import torch

from ..linalg.dense import has_negative_determinant
from ..linalg.distance import GeodesicDistance, Logarithm
from ..linalg.polar_factor import PolarFactor
from ..linalg.precision import full_precision
from .checks import assert_like
from .orthonormal import OrthonormalGeometry, euclidean_inner


class UnitaryGeometry(OrthonormalGeometry):
    r"""Square points with the metric :math:`\operatorname{Re tr}(u^H v)`: :math:`O(n^3)`, exact.

    Points have shape (*, n, n), or (*, blocks n, n), blocks one above the other.
    """

    _factor: ClassVar[float] = 1.0

    def _form(self) -> str:
        return super()._form().replace("p", "n")

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        ok, reason = super()._check_shape(shape, name)
        if ok and shape[-2] == shape[-1] * self.blocks:
            return True, None
        reason = reason or f"`{name}` must have shape {self._form()}, got {tuple(shape)}."
        return False, f"{reason[:-1]}; for rectangular matrices use LowRankStiefel."

    @staticmethod
    def highest_rank(n: int, p: int) -> tuple[int, str]:
        """Return the largest k of points (n, p), and its rule in words."""
        return n // 2, "n // 2"

    @full_precision
    def transp(self, x: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        r"""Transport v from x to y by the rotation that joins them, :math:`y x^H v`.

        Isometric and exact; equal to :meth:`transp_follow_retr` if y is a retraction of x.
        Without the step that led to y it costs :math:`O(n^3)`.
        """
        (x, y, v), shape = self._flatten(x=x, y=y, v=v)
        return self._shaped(y @ (x.mH @ v), shape)

    @full_precision
    def logmap(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        r"""Return the shortest tangent vector that leads from x to y, :math:`\log(y x^H)\, x`.

        Exact, :math:`O(n^3)`. Differentiable once; a second derivative raises an error.

        Raises
        ------
        ValueError
            If x and y are real and their determinants differ in sign: no path joins them.
        """
        (x, y), shape = self._flatten(x=x, y=y)
        relative = y @ x.mH
        if not x.is_complex() and bool(has_negative_determinant(relative.detach()).any()):
            raise ValueError(
                "`x` and `y` must be joined by a path, but their determinants differ in sign; "
                "negate one column of one of them."
            )
        # Of points on the manifold it is the product itself; this takes away what leads off it.
        rotation = PolarFactor.apply(relative, True)  # type: ignore[no-untyped-call]
        log: torch.Tensor = Logarithm.apply(rotation)  # type: ignore[no-untyped-call]
        return self._shaped(log @ x, shape)

    @full_precision
    def dist(self, x: torch.Tensor, y: torch.Tensor, *, keepdim: bool = False) -> torch.Tensor:
        r"""Return the geodesic distance :math:`\lVert \log(y x^H) \rVert_F`.

        Infinite between real matrices whose determinants differ in sign. :math:`O(n^3)`.
        Differentiable twice; where two points coincide the gradient is zero and the second
        derivative NaN. A third derivative raises an error.

        Parameters
        ----------
        x, y : torch.Tensor
            (*, n, n), points
        keepdim : bool
            keep the last two dimensions, with size 1

        Returns
        -------
        torch.Tensor
            (*) or (*, 1, 1), real
        """
        (x, y), shape = self._flatten(x=x, y=y)
        distance: torch.Tensor = GeodesicDistance.apply(x, y)  # type: ignore[no-untyped-call]
        if self.blocks > 1:
            distance = torch.linalg.vector_norm(distance.view(-1, self.blocks), dim=-1)
        return distance.view((*shape[:-2], 1, 1) if keepdim else shape[:-2])

    def inner(
        self,
        x: torch.Tensor,
        u: torch.Tensor,
        v: torch.Tensor | None = None,
        *,
        keepdim: bool = False,
    ) -> torch.Tensor:
        r"""Return :math:`\operatorname{Re tr}(u^H v)`, real, (*) or (*, 1, 1)."""
        v = u if v is None else v
        assert_like(x, u=u, v=v)
        return euclidean_inner(u, v, keepdim=keepdim)

    @full_precision
    def proju(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Project on the tangent space, :math:`\frac12 (u - x u^H x)`; exact, :math:`O(n^3)`."""
        (x, u), shape = self._flatten(x=x, u=u)
        return self._shaped((u - x @ (u.mH @ x)) / 2, shape)
