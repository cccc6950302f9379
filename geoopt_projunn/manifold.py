r"""The manifold of unitary or orthogonal matrices, stepped at low rank."""

import functools
from collections.abc import Callable
from numbers import Integral
from typing import Any, TypeVar

import torch
from geoopt.manifolds.base import Manifold

from .backends import choose
from .backends.contract import StepSpec
from .linalg.hashing import bits_of_row
from .linalg.precision import full_precision
from .retractions import RETRACTIONS
from .rotation import Rotation
from .sketches import SKETCHES, Sketched
from .unitary import UnitaryGeometry

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


class LowRankUnitary(UnitaryGeometry):
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
        bounds the drift by rounding for ever. It costs up to two passes over x; 0 turns it
        off.

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

    With :class:`geoopt.optim.RiemannianLineSearch` use ``cg_method="steepest"`` at finite k, and
    conjugate gradients with k=None only: they compare gradients of different points, whose
    sketches keep different parts, and stall.

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
        # Once a step for each parameter: not by _config, which costs as much again.
        return hash((self.k, self.retraction, self.sketch, self.sweep))

    def extra_repr(self) -> str:
        """Return what tells two of these manifolds apart."""
        swept = "" if self.sweep == 1 else f", sweep={self.sweep}"
        return f"k={self.k}, retraction={self.retraction}, sketch={self.sketch}{swept}"

    @property
    def spec(self) -> StepSpec:
        """What a backend has to know about steps."""
        return StepSpec(self.k, self.sketch, self.retraction, self.sweep)

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
        return choose(x).sketch(x, d, self.spec, counter)

    def rotation(
        self, sketched: Sketched, step: float | torch.Tensor, dtype: torch.dtype
    ) -> Rotation:
        """Retract a sketched generator times ``step``, a number or a (b, 1, 1) tensor."""
        return choose(sketched.core).rotation(sketched, step, self.spec, dtype)

    # -- geoopt's contract -------------------------------------------------------------

    @_step
    def egrad2rgrad(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Return the sketch of the Riemannian gradient, :math:`O(kn^2)`.

        :math:`W \operatorname{skewh}(K) W^H x`, of rank at most 2k; for k=None the exact
        :math:`\frac12 (u - x u^H x)`. Equal gradients have equal sketches; the test vectors
        depend on u and differ from one gradient to the next.

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
        # No step is numbered here; the bits of u change from one gradient to the next.
        backend = choose(x)
        sketched = backend.sketch(x, u, self.spec, bits_of_row(u))
        assert sketched.rows is not None
        velocity = sketched.velocity(x, backend.products)
        return (sketched.rows.to(x.dtype).mH @ velocity).view(shape)

    @_step
    def retr(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Retract along a tangent vector, :math:`O(kn^2)`.

        Exact (to rounding) for a tangent vector of rank at most 2k, as ``egrad2rgrad`` returns
        them. Of a vector of higher rank, such as a sum of several, the part that touches 2k
        directions is followed, by the tangent sketch. A normal part of u is projected away.
        Where ``retraction`` shortens a generator (the exponential beyond a Frobenius norm of
        170), so does this; :meth:`expmap` is exact for any length.

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
        (y,) = self._turned(x, u, x)
        return y.view(shape)

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
        y, carried = self._turned(x, u, x, v)
        return y.view(shape), carried.view(shape)

    @_step
    def transp_follow_retr(self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Transport v along the retraction of u, as :meth:`retr_transp` does."""
        (x, u, v), shape = self._flatten(x=x, u=u, v=v)
        (carried,) = self._turned(x, u, v)
        return carried.view(shape)

    def _turned(self, x: torch.Tensor, u: torch.Tensor, *vs: torch.Tensor) -> list[torch.Tensor]:
        """Turn some vectors as the step along u turns x."""
        backend = choose(x)
        sketched = backend.sketch_tangent(x, u, self.spec)
        rotation = backend.rotation(sketched, 1.0, self.spec, x.dtype)
        return [rotation(v, backend.products) for v in vs]

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        ok, reason = super()._check_shape(shape, name)
        if ok and self.k is not None and self.k > shape[-1] // 2:
            return False, (
                f"`k` must satisfy 1 <= k <= n // 2 = {shape[-1] // 2}, got {self.k}; "
                "use k=None for full rank."
            )
        return ok, reason


def _check_integer(name: str, value: object, *, least: int, remedy: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"`{name}` must be an integer, got {value!r}; {remedy}.")
    if int(value) < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}; {remedy}.")


def _check_name(name: str, value: str, known: dict[str, Any]) -> None:
    if value not in list(known):
        choices = ", ".join(repr(choice) for choice in known)
        raise ValueError(f"`{name}` must be one of {choices}, got {value!r}.")
