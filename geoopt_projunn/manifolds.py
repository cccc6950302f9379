r"""The manifolds, for users: a geometry, and steps of rank k on it."""

from .geometry.stiefel import StiefelGeometry
from .geometry.unitary import UnitaryGeometry
from .low_rank_manifold import LowRankManifold

__all__ = ["LowRankStiefel", "LowRankUnitary"]


class LowRankUnitary(LowRankManifold, UnitaryGeometry):
    r"""Unitary (complex) or orthogonal (real) matrices whose steps have rank k.

    .. math::

        \{x \in \mathbb{C}^{n \times n} : x^H x = I\}
        \quad\text{or}\quad
        \{x \in \mathbb{R}^{n \times n} : x^\top x = I\}

    with the Euclidean metric :math:`\langle u, v \rangle = \operatorname{Re tr}(u^H v)`. Points
    have shape (*, n, n), any number of batch dimensions, dtype float32, float64, complex64 or
    complex128. Tangent vectors at x are :math:`\Omega x`, :math:`\Omega` skew-Hermitian.

    ``egrad2rgrad``, ``retr``, ``retr_transp`` and ``transp_follow_retr`` cost
    :math:`O(kn^2)` and have no derivative. ``inner`` and
    ``estimate_orthogonality_error`` cost :math:`O(n^2)`, and so does ``projx`` for a point that is
    unitary up to rounding errors. All other methods are exact and cost :math:`O(n^3)`. With k=None
    steps are exact and cost :math:`O(n^3)`, too.

    Parameters
    ----------
    k : int, "auto" or None
        The rank of a step: how many planes it turns, 1 <= k <= n // 2. "auto", the default:
        min(8, n // 2) by the size n of each point, see :meth:`rank`. None: all planes, the
        ordinary manifold at :math:`O(n^3)` a step. (For n = 1 there is no plane, and "auto" is the
        same as None.)
    retraction : {"exponential", "polar", "cayley"}
        How a step returns to the manifold: along the geodesic (projUNN-T), to the nearest
        unitary matrix (projUNN-D), or by the Cayley transform.
    sketch : {"tangent", "lsi", "column", "coordinates"}
        Which part of a gradient a step follows. "tangent", the default: a projection of its
        tangent part. "lsi" and "column": the paper's rank-k approximations of the gradient itself.
        "coordinates": the part that turns 2k coordinates, which a hash of the step's number
        chooses, see :func:`geoopt_projunn.sketches.coordinates.coordinates`. With sweep=0 and
        without momentum such a step reads only 2k rows of the point and of the gradient and costs
        :math:`O(k^2 n)`, but it keeps only :math:`4k^2/n^2` of a gradient. It is for huge n, where
        rows of the gradient are computed one by one. No effect with k=None.
    sweep : int
        How many columns the optimizers of this package re-orthonormalize at each step, which
        keeps rounding errors bounded over any number of steps. It costs up to two passes over x;
        0 turns it off.
    blocks : int
        How many matrices are stacked one above the other in each point, which then has shape
        (*, blocks n, n). An example is ``torch.nn.LSTM.weight_hh_l0``, with 4. Each matrix is on
        the manifold and has steps of its own.

    Raises
    ------
    TypeError
        If ``k``, ``sweep`` or ``blocks`` has another type than above.
    ValueError
        If an argument is out of range or not one of the names above.

    Notes
    -----
    Steps never change the sign of a real matrix's determinant: from the identity no
    step reaches a matrix of determinant -1. Choose the initial point accordingly.

    With :class:`geoopt.optim.RiemannianLineSearch` use ``cg_method="steepest"`` if k is an integer.
    Conjugate gradients need k=None: they compare gradients at different points, whose sketches keep
    different parts, and are slower than "steepest" then.

    References
    ----------
    Kiani, Balestriero, LeCun, Lloyd, *projUNN: efficient method for training deep networks
    with unitary matrices*, arXiv:2203.05483.

    Examples
    --------
    >>> import geoopt, torch
    >>> manifold = LowRankUnitary()
    >>> weight = geoopt.ManifoldParameter(manifold.random(8, 8), manifold=manifold)
    >>> weight.manifold
    LowRankUnitary(k=auto, retraction=exponential, sketch=tangent) manifold
    >>> weight.manifold.rank(weight)
    4
    """

    name = "LowRankUnitary"


class LowRankStiefel(LowRankManifold, StiefelGeometry):
    r"""Matrices with orthonormal columns, or rows, whose steps have rank k.

    .. math::

        \{x \in \mathbb{C}^{n \times p} : x^H x = I\} \quad (n \ge p)
        \quad\text{or}\quad
        \{x \in \mathbb{C}^{n \times p} : x x^H = I\} \quad (n < p)

    or the same of real matrices, as :func:`torch.nn.init.orthogonal_` makes them, with the
    canonical metric :math:`\langle u, v \rangle = \operatorname{Re tr}(u^H (I - \frac12 x x^H) v)`.
    Points have shape (*, n, p), any number of batch dimensions, dtype float32, float64, complex64
    or complex128. A wide x is treated as its transpose, so all formulas here are for a tall x.
    Tangent vectors at x are :math:`\Omega x`, :math:`\Omega` skew-Hermitian.

    A gradient d has the generator :math:`\Omega = d x^H - x d^H`, and a step rotates x from the
    left, :math:`x \leftarrow x + W (P - I) W^H x`, as on :class:`LowRankUnitary`. For n = p this
    is the same set with twice the gradient: halve the learning rate.

    ``egrad2rgrad``, ``retr``, ``retr_transp`` and ``transp_follow_retr`` cost
    :math:`O(knp)` and have no derivative. ``projx`` costs :math:`O(np)` for a point that is on the
    manifold to rounding, otherwise :math:`O(np^2)`, as do ``proju``, ``inner`` and ``transp``.
    ``expmap`` costs :math:`O(n^3)`, as ``retr`` does for k=None. ``dist`` and ``logmap`` are not
    available.

    Parameters
    ----------
    k : int, "auto" or None
        The rank of a step: how many planes it turns, 1 <= k <= min(p, n // 2), n the longer side.
        "auto", the default: min(8, p, n // 2). None: all planes.
    retraction, sketch, sweep
        as in :class:`LowRankUnitary`; for a wide x the sweep takes rows instead of columns
    blocks : int
        How many matrices are stacked one above the other in each point, which then has shape
        (*, blocks n, p). Each matrix is on the manifold and has steps of its own.

    Raises
    ------
    TypeError
        If ``k``, ``sweep`` or ``blocks`` has another type than above.
    ValueError
        If an argument is out of range or not one of the names above.

    Notes
    -----
    ``retr`` follows vectors of rank at most 2k exactly; ``egrad2rgrad`` returns such vectors. Their
    generator :math:`u x^H - x u^H - x \operatorname{skewh}(x^H u)\, x^H` has rank at most 4k.

    With k=None ``inner`` and ``egrad2rgrad`` are those of :class:`geoopt.CanonicalStiefel`.
    ``proju`` and ``retr`` differ: in geoopt 0.5 ``proju`` of that class is not a projection, and
    its ``retr`` does not agree with the vector to first order.

    References
    ----------
    Kiani, Balestriero, LeCun, Lloyd, *projUNN: efficient method for training deep networks
    with unitary matrices*, arXiv:2203.05483. Edelman, Arias, Smith, *The Geometry of Algorithms
    with Orthogonality Constraints*, SIAM J. Matrix Anal. Appl. 20, 1998.

    Examples
    --------
    >>> import geoopt, torch
    >>> manifold = LowRankStiefel(k=2)
    >>> weight = geoopt.ManifoldParameter(manifold.random(8, 32), manifold=manifold)
    >>> torch.allclose(weight @ weight.mT, torch.eye(8), atol=1e-5)
    True
    """

    name = "LowRankStiefel"
