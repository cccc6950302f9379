r"""The exact geometry of unitary or orthogonal matrices."""

import math

import geoopt
import torch

from .backends import choose
from .backends.distributed import is_dtensor, place_like, whole_of
from .checks import CheckedMatrices, shape_rule
from .linalg.dense import (
    estimate_orthogonality_error,
    haar,
    orthogonality_error,
)
from .linalg.distance import GeodesicDistance, Logarithm
from .linalg.polar_factor import PolarFactor
from .linalg.precision import full_precision
from .retractions import long_exponential
from .rotation import Rotation
from .sketches import exact


class UnitaryGeometry(CheckedMatrices):
    r"""What does not depend on how a step is taken: :math:`O(n^3)`, exact.

    Points x satisfy :math:`x^H x = I`, shape (*, n, n); tangent vectors at x are
    :math:`\Omega x`, :math:`\Omega` skew-Hermitian; the metric is
    :math:`\operatorname{Re tr}(u^H v)`.
    """

    @full_precision
    def expmap(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`\exp(\operatorname{skewh}(u x^H))\, x`, exact, :math:`O(n^3)`."""
        (x, u), shape = self._flatten(x=x, u=u)
        return _exponential(x, u)(x).view(shape)

    @full_precision
    def expmap_transp(
        self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Follow the geodesic and carry v along by the same rotation, :math:`O(n^3)`."""
        (x, u, v), shape = self._flatten(x=x, u=u, v=v)
        rotation = _exponential(x, u)
        return rotation(x).view(shape), rotation(v).view(shape)

    @full_precision
    def transp_follow_expmap(
        self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Transport v along the geodesic of u, as :meth:`expmap_transp` does."""
        (x, u, v), shape = self._flatten(x=x, u=u, v=v)
        return _exponential(x, u)(v).view(shape)

    @full_precision
    def transp(self, x: torch.Tensor, y: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        r"""Transport v from x to y by the rotation that joins them, :math:`y x^H v`.

        Isometric and exact; equal to :meth:`transp_follow_retr` where y is a retraction.
        Without the step that led to y it costs :math:`O(n^3)`.
        """
        (x, y, v), shape = self._flatten(x=x, y=y, v=v)
        return (y @ (x.mH @ v)).view(shape)

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
        if not x.is_complex() and bool((torch.linalg.det(relative.detach()) < 0).any()):
            raise ValueError(
                "`x` and `y` must be joined by a path, but their determinants differ in sign; "
                "negate one column of one of them."
            )
        # Of points on the manifold it is the product itself; this takes away what leads off it.
        rotation = PolarFactor.apply(relative, True)  # type: ignore[no-untyped-call]
        log: torch.Tensor = Logarithm.apply(rotation)  # type: ignore[no-untyped-call]
        return (log @ x).view(shape)

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
        for name, vector in (("u", u), ("v", u if v is None else v)):
            if vector.shape[-2:] != x.shape[-2:]:
                raise ValueError(shape_rule(name, vector, x))
        product = u.conj() * (u if v is None else v)
        return product.real.sum((-2, -1), keepdim=keepdim)

    @full_precision
    def proju(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Project on the tangent space, :math:`\frac12 (u - x u^H x)`; exact, :math:`O(n^3)`."""
        (x, u), shape = self._flatten(x=x, u=u)
        return ((u - x @ (u.mH @ x)) / 2).view(shape)

    @full_precision
    def projx(self, x: torch.Tensor) -> torch.Tensor:
        r"""Return the nearest unitary matrix.

        A probe of :math:`O(n^2)` finds out whether the estimated :math:`\lVert x^H x - I
        \rVert_F` is at most :math:`(4 \sqrt n + 8)\varepsilon`, a few times the rounding of a
        unitary matrix. If so, the result is a copy; if not, the polar factor, :math:`O(n^3)`.
        The host reads the probe's answer. A DTensor is gathered on every process, and the result
        placed as it is.

        Differentiable any number of times, with the derivative of the polar factor; at a unitary
        matrix that is the projection on the tangent space. There is none where two singular
        values are zero, or for complex x one.

        Raises
        ------
        ValueError
            If x is not finite.
        """
        if is_dtensor(x):
            return place_like(self.projx(whole_of(x)), x)
        (flat,), shape = self._flatten(x=x)
        error = estimate_orthogonality_error(flat.detach())
        if not bool(error.isfinite().all()):
            raise ValueError(
                "`x` must be finite, but has infinite or NaN entries, or entries whose squares "
                "overflow; start again from `manifold.random` or a checkpoint."
            )
        tolerance = torch.finfo(x.dtype).eps * (4 * math.sqrt(x.shape[-1]) + 8)
        is_unitary = bool((error <= tolerance).all())
        factor: torch.Tensor = PolarFactor.apply(flat, is_unitary)  # type: ignore[no-untyped-call]
        return factor.view(shape)

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> geoopt.ManifoldTensor:
        """Draw points from the Haar measure; a real one has either sign of determinant.

        Parameters
        ----------
        size : int
            (*, n, n)
        dtype, device
            of the result; torch's default dtype if not given

        Returns
        -------
        geoopt.ManifoldTensor
            (*, n, n)
        """
        shape = self._created(size, dtype)
        return geoopt.ManifoldTensor(haar(*shape, dtype=dtype, device=device), manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> geoopt.ManifoldTensor:
        """Return identity matrices of shape (*, n, n); ``seed`` has no effect."""
        shape = self._created(size, dtype)
        eye = torch.eye(shape[-1], dtype=dtype, device=device).expand(shape).contiguous()
        return geoopt.ManifoldTensor(eye, manifold=self)

    @full_precision
    @torch.no_grad()
    def orthogonality_error(self, x: torch.Tensor) -> torch.Tensor:
        r"""Measure :math:`\lVert x^H x - I \rVert_F`, (*), real; :math:`O(n^3)`, no gradient.

        A DTensor is gathered on every process.
        """
        return orthogonality_error(whole_of(x))

    @full_precision
    @torch.no_grad()
    def estimate_orthogonality_error(self, x: torch.Tensor) -> torch.Tensor:
        r"""Estimate :math:`\lVert x^H x - I \rVert_F`, without a product of two matrices.

        The mean square of :math:`\lVert (x^H x - I) z \rVert` over random z is the squared norm;
        this takes the mean over four.

        Parameters
        ----------
        x : torch.Tensor
            (*, n, n)

        Returns
        -------
        torch.Tensor
            (*), real, without a gradient; not finite where x is not

        Raises
        ------
        TypeError, ValueError
            If the dtype or the shape is not one of a point.

        Notes
        -----
        :math:`O(n^2)` for each matrix; nothing waits for the device.

        Where the error is spread over many directions, as by noise or an average, the estimate
        is within half the norm at n = 8, a fifth at n = 64 and a tenth at n = 256. Where it is
        all in one direction, it is between a tenth and two and a half times the norm. These are
        the extremes among a thousand random matrices, rounded up. The estimate's own rounding
        adds about :math:`\sqrt n\,\varepsilon`, up to four times the norm of a small matrix that
        is unitary to rounding. The four vectors are always the same, and an error orthogonal to
        all of them is not seen.
        """
        self.assert_check_point(x)
        return choose(x).estimate_orthogonality_error(x)


def _exponential(x: torch.Tensor, u: torch.Tensor) -> Rotation:
    # Not torch.linalg.matrix_exp: in torch 2.13 it loses up to half the digits of one matrix.
    return Rotation(None, long_exponential(exact(x, u).core))
