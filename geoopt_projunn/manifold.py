r"""The manifold of unitary or orthogonal matrices, stepped at low rank."""

import functools
import math
from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeVar

import geoopt
import torch
from geoopt.manifolds.base import Manifold
from geoopt.utils import size2shape

from .linalg.dense import estimate_orthogonality_error, haar, orthogonality_error, polar_factor
from .linalg.logarithm import GeodesicDistance, unitary_log
from .linalg.precision import WIDE, full_precision
from .retractions import RETRACTIONS, long_exponential
from .rotation import Rotation
from .sketches import SKETCHES, Sketched, exact, full_range

__all__ = ["LowRankUnitary"]

T = TypeVar("T")


def _step(method: Callable[..., T]) -> Callable[..., T]:
    """Run a step with autocast off, and without a gradient where it truncates.

    The basis of a sketch has no derivative where rows depend on each other, as they do in any
    direction of low rank.
    """

    @functools.wraps(method)
    def wrapped(self: "LowRankUnitary", *args: Any, **kwargs: Any) -> T:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.k is None):
            return method(self, *args, **kwargs)

    return full_precision(wrapped)


class LowRankUnitary(Manifold):
    r"""Unitary (complex) or orthogonal (real) matrices whose steps have rank k.

    .. math::

        \{x \in \mathbb{C}^{n \times n} : x^H x = I\}
        \quad\text{or}\quad
        \{x \in \mathbb{R}^{n \times n} : x^\top x = I\}

    with the Euclidean metric :math:`\langle u, v \rangle = \operatorname{Re tr}(u^H v)`. Points
    have shape (*, n, n), any number of batch dimensions, dtype float32, float64, complex64 or
    complex128. Tangent vectors at x are :math:`\Omega x`, :math:`\Omega` skew-Hermitian.

    ``egrad2rgrad``, ``retr``, ``retr_transp`` and ``transp_follow_retr`` cost
    :math:`O(kn^2)` and have no derivative; ``projx`` costs :math:`O(n^2)` for a point that is
    unitary to rounding; everything else is exact and costs :math:`O(n^3)`, as everything does
    for k=None.

    Parameters
    ----------
    k : int or None
        Rank of a gradient's sketch, 1 <= k <= n // 2; a step then moves a subspace of
        dimension 2k. None: no truncation, the ordinary manifold at :math:`O(n^3)` a step.
    retraction : {"exponential", "polar", "cayley"}
        How a step returns to the manifold: along the geodesic (projUNN-T), to the nearest
        unitary matrix (projUNN-D), or by the Cayley transform.
    sketch : {"tangent", "lsi", "column"}
        What a step keeps of a gradient: a projection of its tangent part (the default), or
        the paper's rank-k approximations of the gradient itself. No effect with k=None.
    sweep : int
        Columns that the optimizers of this package re-orthonormalize at each step, which
        bounds the drift by rounding for ever. It costs two passes over x; 0 turns it off.

    Raises
    ------
    TypeError
        If ``k`` or ``sweep`` is not an integer.
    ValueError
        If an argument is out of range or not one of the names above.

    Notes
    -----
    The sign of a real matrix's determinant never changes along a path: from the identity no
    step reaches a matrix of determinant -1. Choose the initial point accordingly.

    References
    ----------
    Kiani, Balestriero, LeCun, Lloyd, *projUNN: efficient method for training deep networks
    with unitary matrices*, arXiv:2203.05483.

    Examples
    --------
    >>> import geoopt, torch
    >>> manifold = LowRankUnitary(k=1)
    >>> weight = geoopt.ManifoldParameter(manifold.random(8, 8), manifold=manifold)
    >>> weight.manifold
    LowRankUnitary(k=1, retraction=exponential, sketch=tangent) manifold
    """

    name = "LowRankUnitary"
    ndim = 2
    __scaling__ = Manifold.__scaling__.copy()

    def __init__(
        self,
        k: int | None = 1,
        *,
        retraction: str = "exponential",
        sketch: str = "tangent",
        sweep: int = 1,
    ) -> None:
        super().__init__()
        if k is not None:
            _check_integer("k", k, least=1, remedy="use k=None for full rank")
        _check_integer("sweep", sweep, least=0, remedy="use sweep=0 to turn drift control off")
        _check_name("retraction", retraction, RETRACTIONS)
        _check_name("sketch", sketch, SKETCHES)
        self.k = k if k is None else int(k)
        self.retraction = retraction
        self.sketch = sketch
        self.sweep = int(sweep)

    @property
    def reversible(self) -> bool:
        """Whether ``retr_transp`` undoes itself: only without truncation."""
        return self.k is None

    def _config(self) -> tuple[int | None, str, str, int]:
        return self.k, self.retraction, self.sketch, self.sweep

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._config() == other._config()

    def __hash__(self) -> int:
        return hash((type(self), self._config()))

    def extra_repr(self) -> str:
        """Return what tells two of these manifolds apart."""
        swept = "" if self.sweep == 1 else f", sweep={self.sweep}"
        return f"k={self.k}, retraction={self.retraction}, sketch={self.sketch}{swept}"

    # -- steps -------------------------------------------------------------------------

    @full_precision
    def sketch_direction(self, x: torch.Tensor, d: torch.Tensor, counter: torch.Tensor) -> Sketched:
        r"""Sketch the generator of the step along an ambient direction.

        Parameters
        ----------
        x, d : torch.Tensor
            (b, n, n), point and direction
        counter : torch.Tensor
            (b,), int64, the number of the step

        Returns
        -------
        Sketched
            basis and core of :math:`\operatorname{skewh}(d x^H)`, for :meth:`rotation`
        """
        if self.k is None:
            return exact(x, d)
        return SKETCHES[self.sketch](x, d, self.k, counter)

    def rotation(
        self, sketched: Sketched, step: float | torch.Tensor, dtype: torch.dtype
    ) -> Rotation:
        """Retract a sketched generator times ``step``, a number or a (b, 1, 1) tensor."""
        delta = RETRACTIONS[self.retraction](step * sketched.core)
        return Rotation(None if sketched.rows is None else sketched.rows.to(dtype), delta)

    def _rotation_along(self, x: torch.Tensor, u: torch.Tensor) -> Rotation:
        if self.k is None:
            return self.rotation(exact(x, u), 1.0, x.dtype)
        # 2k test vectors span the range of any u that egrad2rgrad can return.
        return self.rotation(full_range(x, u, 2 * self.k), 1.0, x.dtype)

    # -- geoopt's contract -------------------------------------------------------------

    @_step
    def egrad2rgrad(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Return the sketch of the Riemannian gradient, :math:`O(kn^2)`.

        :math:`W \operatorname{skewh}(K) W^H x`, of rank at most 2k; for k=None the exact
        :math:`\frac12 (u - x u^H x)`.

        Parameters
        ----------
        x, u : torch.Tensor
            (*, n, n), point and Euclidean gradient

        Returns
        -------
        torch.Tensor
            (*, n, n), tangent at x
        """
        if self.k is None:
            return self.proju(x, u)
        (x, u), shape = self._flatten(x=x, u=u)
        counter = torch.zeros(x.shape[:1], dtype=torch.int64, device=x.device)
        sketched = self.sketch_direction(x, u, counter)
        assert sketched.rows is not None
        generator = (sketched.core - sketched.core.mH) / 2
        rows = sketched.rows.to(x.dtype)
        factor = (generator @ (rows @ x).to(generator.dtype)).to(x.dtype)
        return (rows.mH @ factor).view(shape)

    @_step
    def retr(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Retract along a tangent vector, :math:`O(kn^2)`.

        Exact (to rounding) for a tangent vector of rank at most 2k, as ``egrad2rgrad`` returns
        them. Of a vector of higher rank, such as a sum of several, the part that touches 2k
        directions is followed, by the tangent sketch. A normal part of u is projected away.

        Parameters
        ----------
        x, u : torch.Tensor
            (*, n, n), point and tangent vector

        Returns
        -------
        torch.Tensor
            (*, n, n), a point
        """
        (x, u), shape = self._flatten(x=x, u=u)
        return self._rotation_along(x, u)(x).view(shape)

    @_step
    def retr_transp(
        self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Retract along u and carry v along, :math:`O(kn^2)`.

        With :math:`R` the rotation of the step, :math:`x \mapsto Rx` and :math:`v \mapsto Rv`:
        isometric, tangent at the new point if v was at the old one, and exact for the
        direction of the step itself.

        Parameters
        ----------
        x, u, v : torch.Tensor
            (*, n, n), point, direction and the tangent vector to transport

        Returns
        -------
        tuple of torch.Tensor
            the new point and the transported vector, (*, n, n) each
        """
        (x, u, v), shape = self._flatten(x=x, u=u, v=v)
        rotation = self._rotation_along(x, u)
        return rotation(x).view(shape), rotation(v).view(shape)

    @_step
    def transp_follow_retr(self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Transport v along the retraction of u, as :meth:`retr_transp` does."""
        (x, u, v), shape = self._flatten(x=x, u=u, v=v)
        return self._rotation_along(x, u)(v).view(shape)

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

        Exact, :math:`O(n^3)`, not differentiable.

        Raises
        ------
        ValueError
            If x and y are real and their determinants differ in sign: no path joins them.
        """
        (x, y), shape = self._flatten(x=x, y=y)
        log, exists = unitary_log(y @ x.mH)
        if not bool(exists.all()):
            raise ValueError(
                "`x` and `y` must be joined by a path, but their determinants differ in sign; "
                "negate one column of one of them."
            )
        return (log @ x).view(shape)

    @full_precision
    def dist(self, x: torch.Tensor, y: torch.Tensor, *, keepdim: bool = False) -> torch.Tensor:
        r"""Return the geodesic distance :math:`\lVert \log(y x^H) \rVert_F`.

        Infinite between real matrices whose determinants differ in sign. Differentiable.
        :math:`O(n^3)`.

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
                raise ValueError(_shape_rule(name, vector, x))
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
        \rVert_F` is at most :math:`(n + 8)\varepsilon`, the rounding of a unitary matrix. If
        so, the result is a copy; if not, the polar factor, :math:`O(n^3)`. The host reads the
        probe's answer.
        """
        (flat,), shape = self._flatten(x=x)
        tolerance = torch.finfo(x.dtype).eps * (x.shape[-1] + 8)
        if bool((estimate_orthogonality_error(flat) <= tolerance).all()):
            return flat.clone(memory_format=torch.contiguous_format).view(shape)
        return polar_factor(flat).contiguous().view(shape)

    def random(
        self,
        *size: int,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        **_: Any,
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
        r"""Measure :math:`\lVert x^H x - I \rVert_F`, (*), real; :math:`O(n^3)`, no gradient."""
        return orthogonality_error(x)

    # -- checks ------------------------------------------------------------------------

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
            return False, f"`{name}` must have shape (*, n, n), got {tuple(shape)}."
        n = shape[-1]
        if self.k is not None and self.k > n // 2:
            return False, (
                f"`k` must satisfy 1 <= k <= n // 2 = {n // 2}, got {self.k}; "
                "use k=None for full rank."
            )
        return True, None

    def check_point(self, x: torch.Tensor, *, explain: bool = False) -> Any:
        """Check dtype and shape of a point."""
        ok, reason = (x.dtype in WIDE), None
        if ok:
            return super().check_point(x, explain=explain)
        reason = _dtype_rule("x", x.dtype)
        return (ok, reason) if explain else ok

    def assert_check_point(self, x: torch.Tensor) -> None:
        """Raise TypeError for an unsupported dtype, ValueError for an unsupported shape."""
        if x.dtype not in WIDE:
            raise TypeError(_dtype_rule("x", x.dtype))
        super().assert_check_point(x)

    def _check_point_on_manifold(
        self, x: torch.Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        if x.dtype not in WIDE:
            return False, _dtype_rule("x", x.dtype)
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        product = x.mH @ x
        if torch.allclose(product, eye.expand_as(product), atol=atol, rtol=rtol):
            return True, None
        worst = float((product - eye).abs().max())
        return False, f"`xᴴx != I` by {worst:.1e} with atol={atol}, rtol={rtol}"

    def _check_vector_on_tangent(
        self, x: torch.Tensor, u: torch.Tensor, *, atol: float = 1e-5, rtol: float = 1e-5
    ) -> tuple[bool, str | None]:
        product = x.mH @ u
        normal = product + product.mH
        if torch.allclose(normal, torch.zeros_like(normal), atol=atol, rtol=rtol):
            return True, None
        worst = float(normal.abs().max())
        return False, f"`xᴴu + uᴴx != 0` by {worst:.1e} with atol={atol}, rtol={rtol}"

    def _created(self, size: tuple[int, ...], dtype: torch.dtype | None) -> tuple[int, ...]:
        shape: tuple[int, ...] = tuple(size2shape(*size))
        if (dtype or torch.get_default_dtype()) not in WIDE:
            raise TypeError(_dtype_rule("dtype", dtype or torch.get_default_dtype()))
        self._assert_check_shape(shape, "size")
        return shape

    def _flatten(self, **tensors: torch.Tensor) -> tuple[list[torch.Tensor], torch.Size]:
        """Check, broadcast and view as (b, n, n), contiguous."""
        x = tensors["x"]
        self.assert_check_point(x)
        for name, tensor in tensors.items():
            if tensor.dtype != x.dtype:
                raise TypeError(
                    f"`{name}` must have the dtype of `x`, {x.dtype}, got {tensor.dtype}; "
                    f"convert it with `{name}.to({x.dtype})`."
                )
            if tensor.shape[-2:] != x.shape[-2:]:
                raise ValueError(_shape_rule(name, tensor, x))
        try:
            expanded = torch.broadcast_tensors(*tensors.values())
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors.values())
            raise ValueError(f"The batch dimensions must broadcast, got {shapes}.") from error
        shape = expanded[0].shape
        count = math.prod(shape[:-2])
        return [t.reshape(count, *shape[-2:]).contiguous() for t in expanded], shape


def _exponential(x: torch.Tensor, u: torch.Tensor) -> Rotation:
    # Not torch.linalg.matrix_exp: in torch 2.13 it loses up to half the digits of one matrix.
    return Rotation(None, long_exponential(exact(x, u).core))


def _check_integer(name: str, value: object, *, least: int, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}; {remedy}.")
    if int(value) < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}; {remedy}.")


def _check_name(name: str, value: str, known: dict[str, Any]) -> None:
    if value not in list(known):
        choices = ", ".join(repr(choice) for choice in known)
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")


def _shape_rule(name: str, tensor: torch.Tensor, x: torch.Tensor) -> str:
    return (
        f"`{name}` must have shape (*, {x.shape[-2]}, {x.shape[-1]}) like `x`, "
        f"got {tuple(tensor.shape)}."
    )


def _dtype_rule(name: str, dtype: torch.dtype) -> str:
    known = ", ".join(str(known).removeprefix("torch.") for known in WIDE)
    return (
        f"`{name}` must have one of the dtypes {known}, got {dtype}; half precision cannot hold "
        "orthogonality, keep this parameter in float32."
    )
