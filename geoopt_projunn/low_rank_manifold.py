r"""Steps of rank k on matrices with orthonormal columns, and geoopt's contract for them."""

import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Literal, TypeVar

import torch
from geoopt.manifolds.base import Manifold

from .arguments import assert_known, checked_integer
from .backends import choose
from .backends.spec import StepSpec
from .geometry.orthonormal import OrthonormalGeometry
from .linalg.hashing import bits_of
from .linalg.precision import full_precision
from .linalg.truncated import without_derivative
from .retractions import RETRACTIONS
from .rotation import Rotation
from .sketches import SKETCHES, Sketched
from .sketches.coordinates import COORDINATES

T = TypeVar("T")
Rank = int | Literal["auto"] | None
AUTO: Literal["auto"] = "auto"
"""The k of a manifold that takes the rank of a step from the size of each point."""
_MOST_BY_DEFAULT = 8
# Where the classes of this package are. Subclasses elsewhere may add options, unknown to `__eq__`.
_OWN = f"{__package__}.manifolds"
# Read once or twice a step for each parameter: this takes a third of a method's time.
_options_of = attrgetter("k", "retraction", "sketch", "sweep", "blocks")


def _step(method: Callable[..., T]) -> Callable[..., T]:
    """Run a step with autocast off. Where it truncates, asking for its derivative is an error."""

    @functools.wraps(method)
    def wrapped(self: "LowRankManifold", x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        # What is no matrix is refused by the method.
        is_matrix = isinstance(x, torch.Tensor) and x.dim() >= 2
        if self.k is None or (is_matrix and self.rank(x) is None):
            return method(self, x, *args, **kwargs)
        with torch.set_grad_enabled(False):
            result = method(self, x, *args, **kwargs)
        return without_derivative(method.__name__, result, (x, *args, *kwargs.values()))

    return full_precision(wrapped)


def _checked(name: str, value: Any) -> Any:
    """Return an option as a manifold has it, or raise TypeError or ValueError."""
    if name == "k":
        if value is None or (isinstance(value, str) and value == AUTO):
            return value
        remedy = f'use k=None for full rank, or k="{AUTO}" for one that fits the size'
        return checked_integer("k", value, remedy=remedy)
    if name == "sweep":
        return checked_integer(name, value, least=0, remedy="use sweep=0 to turn drift control off")
    if name == "blocks":
        return checked_integer(name, value, remedy="use blocks=1 for one matrix")
    if name == "retraction":
        assert_known(name, value, RETRACTIONS)
    if name == "sketch":
        assert_known(name, value, (*SKETCHES, COORDINATES))
    return value


class LowRankManifold(OrthonormalGeometry):
    """What optimizers and modules ask for: the steps that all manifolds of this package share.

    A subclass adds a geometry, which says what shapes points may have, and a metric. Manifolds of
    this package are equal if their options are; those of other subclasses, which may have more
    options, if they are the same object.
    """

    __scaling__ = Manifold.__scaling__.copy()

    def __init__(
        self,
        k: Rank = "auto",
        *,
        retraction: str = "exponential",
        sketch: str = "tangent",
        sweep: int = 1,
        blocks: int = 1,
    ) -> None:
        super().__init__()
        self.k: Rank = k
        self.retraction, self.sketch, self.sweep, self.blocks = retraction, sketch, sweep, blocks

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; an option that no manifold can have is refused, also later."""
        super().__setattr__(name, _checked(name, value))

    @property
    def reversible(self) -> bool:
        """Whether ``retr_transp`` undoes itself: only without truncation."""
        return self.k is None

    def __eq__(self, other: object) -> bool:
        if self is other or type(other) is not type(self):
            return self is other
        # A subclass may have options of its own.
        return type(self).__module__ == _OWN and _options_of(self) == _options_of(other)

    def __hash__(self) -> int:
        return hash(_options_of(self))

    def extra_repr(self, x: torch.Tensor | None = None) -> str:
        """Return what tells two of these manifolds apart, with the rank of a point if given."""
        # What shards parameters may have left vectors of them.
        k = self.k if x is None or x.dim() < 2 else self.rank(x)
        swept = "" if self.sweep == 1 else f", sweep={self.sweep}"
        stacked = "" if self.blocks == 1 else f", blocks={self.blocks}"
        return f"k={k}, retraction={self.retraction}, sketch={self.sketch}{swept}{stacked}"

    def rank(self, x: torch.Tensor) -> int | None:
        """Return how many planes a step turns for a point x, None for all planes.

        Parameters
        ----------
        x : torch.Tensor
            (*, blocks n, p), a point; only its shape counts

        Raises
        ------
        ValueError
            If x has fewer than two dimensions.
        """
        if x.dim() < 2:
            self._assert_check_shape(x.shape, "x")
        return self._rank(x.shape[-2] // self.blocks, x.shape[-1])

    def _rank(self, n: int, p: int) -> int | None:
        if self.k != AUTO:
            return self.k
        # Matrices of one row have no plane.
        return min(_MOST_BY_DEFAULT, self.highest_rank(n, p)[0]) or None

    def spec(self, points: torch.Tensor, normalize: str | None = None) -> StepSpec:
        """Return what a backend has to know about steps of points, viewed as :meth:`points`."""
        *_, n, p = points.shape
        k = self._rank(n, p)
        return StepSpec(k, self.sketch, self.retraction, self.sweep, self._factor, normalize)

    @full_precision
    def sketch_direction(self, x: torch.Tensor, d: torch.Tensor, counter: torch.Tensor) -> Sketched:
        r"""Sketch the generator of the step along an ambient direction.

        Parameters
        ----------
        x, d : torch.Tensor
            (b, n, p), n >= p, point and direction, see :meth:`points`
        counter : torch.Tensor
            (b,), int64, the number of the step

        Returns
        -------
        Sketched
            basis and core of the generator, for :meth:`rotation`
        """
        return choose(x).sketch(x, d, self.spec(x), counter)

    def rotation(
        self, sketched: Sketched, step: float | torch.Tensor, dtype: torch.dtype
    ) -> Rotation:
        """Retract a sketched generator times ``step``, a number or a (b, 1, 1) tensor."""
        # A rotation has the rank of its core, whatever the manifold says.
        spec = self.spec(sketched.core)
        return choose(sketched.core).rotation(sketched, step, spec, dtype)

    # -- geoopt's contract -------------------------------------------------------------

    @_step
    def egrad2rgrad(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Return the sketch of the Riemannian gradient, :math:`O(knp)`.

        :math:`W \operatorname{skewh}(K) W^H x`, of rank at most 2k; for k=None the exact
        :math:`\frac12 (u - x u^H x)`, in the canonical metric twice as long. Equal
        gradients have equal sketches; the test vectors depend on u and differ from one gradient to
        the next.

        Parameters
        ----------
        x, u : torch.Tensor
            point and Euclidean gradient

        Returns
        -------
        torch.Tensor
            tangent at x

        Raises
        ------
        RuntimeError
            If the derivative of the result is asked for: only steps with k=None have one.
        """
        (x, u), shape = self._flatten(x=x, u=u)
        if self._rank(*x.shape[-2:]) is None:
            return self._shaped((u - x @ (u.mH @ x)) * (self._factor / 2), shape)
        # No step is numbered here; the bits of u change from one gradient to the next.
        backend = choose(x)
        sketched = backend.sketch(x, u, self.spec(x), bits_of(u))
        assert sketched.rows is not None
        velocity = sketched.velocity(x, backend.products)
        return self._shaped(sketched.rows.to(x.dtype).mH @ velocity, shape)

    @_step
    def retr(self, x: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        r"""Retract along a tangent vector, :math:`O(knp)`.

        Exact (to rounding) for a tangent vector of rank at most 2k; ``egrad2rgrad`` returns such
        vectors. From a vector of higher rank, such as a sum of several, the tangent sketch takes
        a part of rank 2k. A normal part of u is projected away. Very long steps (for the
        exponential, generators beyond a Frobenius norm of 170) are shortened; :meth:`expmap` is
        exact for any length.

        Parameters
        ----------
        x, u : torch.Tensor
            point and tangent vector

        Returns
        -------
        torch.Tensor
            a point

        Raises
        ------
        RuntimeError
            If the derivative of the result is asked for: only steps with k=None have one.
        """
        (x, u), shape = self._flatten(x=x, u=u)
        (y,) = self._turned(x, u, x)
        return self._shaped(y, shape)

    @_step
    def retr_transp(
        self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        r"""Retract along u and carry v along, :math:`O(knp)`.

        With :math:`R` the rotation of the step, :math:`x \mapsto Rx` and :math:`v \mapsto Rv`:
        isometric, tangent at the new point if v was at the old one, and exact for the
        direction of the step itself.

        Parameters
        ----------
        x, u, v : torch.Tensor
            point, direction and the tangent vector to transport

        Returns
        -------
        tuple of torch.Tensor
            the new point and the transported vector

        Raises
        ------
        RuntimeError
            If the derivative of the result is asked for: only steps with k=None have one.
        """
        (x, u, v), shape = self._flatten(x=x, u=u, v=v)
        y, carried = self._turned(x, u, x, v)
        return self._shaped(y, shape), self._shaped(carried, shape)

    @_step
    def transp_follow_retr(self, x: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Transport v along the retraction of u, as :meth:`retr_transp` does."""
        (x, u, v), shape = self._flatten(x=x, u=u, v=v)
        (carried,) = self._turned(x, u, v)
        return self._shaped(carried, shape)

    def _turned(self, x: torch.Tensor, u: torch.Tensor, *vs: torch.Tensor) -> list[torch.Tensor]:
        """Turn some vectors as the step along u turns x."""
        backend, spec = choose(x), self.spec(x)
        sketched = backend.sketch_tangent(x, u, spec)
        rotation = backend.rotation(sketched, 1.0, spec, x.dtype)
        return [rotation(v, backend.products) for v in vs]

    def _check_shape(self, shape: tuple[int, ...], name: str) -> tuple[bool, str | None]:
        ok, reason = super()._check_shape(shape, name)
        if ok and isinstance(self.k, int):
            highest, rule = self.highest_rank(shape[-2] // self.blocks, shape[-1])
            if self.k > highest:
                return False, (
                    f"`k` must satisfy 1 <= k <= {rule} = {highest}, got {self.k}; "
                    "use k=None for full rank."
                )
        return ok, reason


def low_rank_manifold_of(p: torch.Tensor) -> LowRankManifold | None:
    """Return the manifold of a parameter, None unless it is one of these."""
    manifold = getattr(p, "manifold", None)
    return manifold if isinstance(manifold, LowRankManifold) else None
