r"""Sketches: the low-dimensional subspace that a rank-k step moves.

A sketch takes a point :math:`x` and an ambient direction :math:`D` (a gradient, a momentum)
and returns orthonormal rows :math:`W^H` and a core :math:`K`, such that
:math:`W \operatorname{skewh}(K) W^H` stands for the generator
:math:`\Omega = \operatorname{skewh}(D x^H)` of the step, in :math:`O(knp)`. Points and directions
are (b, n, p) with n >= p.

To add one: a function with the signature of :func:`tangent`, made of products of a few rows
with ``x`` and ``d``, that gives finite results for every finite input, non-finite ones if
``d`` is not finite, draws no random numbers (they would differ between replicas; take them
from :mod:`geoopt_projunn.linalg.hashing`) and never reads a value back to the host.
"""

from collections.abc import Callable

from .ambient import column, lsi
from .exact import exact, exact_tangent
from .sketched import Sketched
from .tangent import full_range, skew, tangent

__all__ = [
    "SKETCHES",
    "Sketch",
    "Sketched",
    "column",
    "exact",
    "exact_tangent",
    "full_range",
    "lsi",
    "skew",
    "tangent",
]

Sketch = Callable[..., Sketched]

SKETCHES: dict[str, Sketch] = {"tangent": tangent, "lsi": lsi, "column": column}
