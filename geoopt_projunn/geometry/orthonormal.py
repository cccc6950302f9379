r"""The exact geometry that matrices with orthonormal columns share, square or not."""

import math
from typing import ClassVar

import geoopt
import torch

from ..backends import choose
from ..backends.distributed import is_dtensor, place_like, whole_of
from ..linalg.dense import (
    estimate_orthogonality_error,
    haar,
    orthogonality_error,
)
from ..linalg.polar_factor import PolarFactor
from ..linalg.precision import full_precision
from ..retractions import long_exponential
from ..rotation import Rotation
from ..sketches import exact_tangent
from .checks import CheckedMatrices


class OrthonormalGeometry(CheckedMatrices):
    r"""The methods that are the same for both metrics; they are exact, and most cost O(n³).

    Points x satisfy :math:`x^H x = I`, shape (*, n, p), n >= p; tangent vectors at x are
    :math:`\Omega x`, :math:`\Omega` skew-Hermitian. All that this says of x and of its columns
    holds for :math:`x^\top` if x is wide, and for each block if a point has several.
    """

    _factor: ClassVar[float]
    """Of the metric: its gradient is this times skewh(d xᴴ) x."""

    @staticmethod
    def highest_rank(n: int, p: int) -> tuple[int, str]:
        """Return the highest rank of a sketch of an n x p matrix, and how it comes about."""
        raise NotImplementedError

    @full_precision
    def expmap(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Return :math:`\exp(\Omega)\, x`, :math:`\Omega` the generator of u; exact.

        :math:`\Omega = u x^H - x u^H - x \operatorname{skewh}(x^H u)\, x^H`, for square x
        :math:`\operatorname{skewh}(u x^H)`. :math:`O(n^3)`.
        """
        (x, u), shape = self._flatten(x=x, u=u)
        return self._shaped(_exponential(x, u)(x), shape)

    @full_precision
    def expmap_transp(
        self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Follow the geodesic and carry v along by the same rotation, :math:`O(n^3)`."""
        (x, u, v), shape = self._flatten(x=x, u=u, v=v)
        rotation = _exponential(x, u)
        return self._shaped(rotation(x), shape), self._shaped(rotation(v), shape)

    @full_precision
    def transp_follow_expmap(
        self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """Transport v along the geodesic of u, as :meth:`expmap_transp` does."""
        (x, u, v), shape = self._flatten(x=x, u=u, v=v)
        return self._shaped(_exponential(x, u)(v), shape)

    @full_precision
    def projx(self, x: torch.Tensor) -> torch.Tensor:
        r"""Return the nearest point.

        A test of :math:`O(np)` first checks whether the estimated :math:`\lVert x^H x - I
        \rVert_F` is at most :math:`(4 \sqrt p + 8)\varepsilon`, a few times the rounding of a
        point. If so, the result is a copy; if not, the polar factor, :math:`O(np^2)`.
        The host waits for this test. A DTensor is gathered on every process, and the result
        placed as it is.

        Differentiable any number of times, with the derivative of the polar factor; at a point
        that is the projection on the tangent space. The derivative does not exist if two singular
        values are zero; for complex x, or n > p, if one is.

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
        tolerance = torch.finfo(x.dtype).eps * (4 * math.sqrt(flat.shape[-1]) + 8)
        is_unitary = bool((error <= tolerance).all())
        factor: torch.Tensor = PolarFactor.apply(flat, is_unitary)  # type: ignore[no-untyped-call]
        return self._shaped(factor, shape)

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> geoopt.ManifoldTensor:
        """Draw points from the Haar measure; a real square one has either sign of determinant.

        Parameters
        ----------
        size : int
            of a point, with batch dimensions
        dtype, device
            of the result; torch's default dtype if not given

        Returns
        -------
        geoopt.ManifoldTensor
            of this size
        """
        shape = self._created(size, dtype)
        count, *sides = self._size(shape)
        points = haar(count, max(sides), min(sides), dtype=dtype, device=device)
        return geoopt.ManifoldTensor(self._shaped(points, shape), manifold=self)

    def origin(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        seed: int | None = 42,
    ) -> geoopt.ManifoldTensor:
        """Return points with ones on the diagonal, zeros elsewhere; ``seed`` has no effect."""
        shape = self._created(size, dtype)
        count, *sides = self._size(shape)
        eye = torch.eye(max(sides), min(sides), dtype=dtype, device=device).expand(count, -1, -1)
        return geoopt.ManifoldTensor(self._shaped(eye, shape), manifold=self)

    @full_precision
    @torch.no_grad()
    def orthogonality_error(self, x: torch.Tensor) -> torch.Tensor:
        r"""Measure :math:`\lVert x^H x - I \rVert_F`, real; :math:`O(np^2)`, no gradient.

        Of shape (*); with several blocks (*, blocks), one for each. A DTensor is gathered on every
        process. For other dtypes and shapes than those of points, TypeError or ValueError.
        """
        self.assert_check_point(x)
        return orthogonality_error(self.points(whole_of(x)))

    @full_precision
    @torch.no_grad()
    def estimate_orthogonality_error(self, x: torch.Tensor) -> torch.Tensor:
        r"""Estimate :math:`\lVert x^H x - I \rVert_F`, without a product of two matrices.

        The mean square of :math:`\lVert (x^H x - I) z \rVert` over random z is the squared norm;
        this takes the mean over four.

        Parameters
        ----------
        x : torch.Tensor
            of the shape of a point

        Returns
        -------
        torch.Tensor
            (*), real, with several blocks (*, blocks), without a gradient; not finite where x
            is not

        Raises
        ------
        TypeError, ValueError
            If the dtype or the shape is not one of a point.

        Notes
        -----
        :math:`O(np)` for each matrix; nothing waits for the device.

        Where the error is spread over many directions, as by noise or an average, the estimate
        is within half the norm at p = 8, a fifth at p = 64 and a tenth at p = 256. Where it is
        all in one direction, it is between a tenth and two and a half times the norm. These are
        the extremes among a thousand random matrices, rounded up. The estimate's own rounding
        adds about :math:`\sqrt p\,\varepsilon`, up to four times the norm of a small matrix that
        is unitary to rounding. The four vectors are always the same, and an error orthogonal to
        all of them is not seen.
        """
        self.assert_check_point(x)
        x = self.points(x)
        return choose(x).estimate_orthogonality_error(x)


def euclidean_inner(u: torch.Tensor, v: torch.Tensor, *, keepdim: bool = False) -> torch.Tensor:
    r"""Return :math:`\operatorname{Re tr}(u^H v)` of each pair of matrices."""
    return (u.conj() * v).real.sum((-2, -1), keepdim=keepdim)


def _exponential(x: torch.Tensor, u: torch.Tensor) -> Rotation:
    # Not torch.linalg.matrix_exp: in torch 2.13 it loses up to half the digits of one matrix.
    return Rotation(None, long_exponential(exact_tangent(x, u).core))
