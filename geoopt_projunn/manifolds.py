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
    :math:`O(kn^2)` and have no derivative; ``projx`` costs :math:`O(n^2)` for a point that is
    unitary to rounding; everything else is exact and costs :math:`O(n^3)`, as everything does
    for k=None.

    Parameters
    ----------
    k : int, "auto" or None
        The rank of a step: how many planes it turns, 1 <= k <= n // 2. "auto", the default:
        min(8, n // 2), by the size of each point, see :meth:`rank`; a matrix with n = 1 has no
        plane, and counts as None. None: all planes, the ordinary manifold at :math:`O(n^3)` a step.
    retraction : {"exponential", "polar", "cayley"}
        How a step returns to the manifold: along the geodesic (projUNN-T), to the nearest
        unitary matrix (projUNN-D), or by the Cayley transform.
    sketch : {"tangent", "lsi", "column", "coordinates"}
        What a step keeps of a gradient. "tangent", the default: a projection of its tangent part.
        "lsi" and "column": the paper's rank-k approximations of the gradient itself.
        "coordinates": what turns 2k coordinates, new ones at each step, see
        :func:`geoopt_projunn.sketches.coordinates.coordinates`; with sweep=0 and without momentum
        the step reads 2k rows of the point and of the gradient, costs :math:`O(k^2 n)`, and keeps
        :math:`4k^2/n^2` of a gradient, which pays where n is huge and rows of the gradient are
        made one by one. No effect with k=None.
    sweep : int
        Columns that the optimizers of this package re-orthonormalize at each step, which
        bounds the drift by rounding for ever. It costs up to two passes over x; 0 turns it
        off.
    blocks : int
        How many matrices lie one above the other in each point, which then has shape
        (*, blocks n, n), as ``torch.nn.LSTM.weight_hh_l0`` has with 4. Each is on the manifold and
        moves by itself.

    Raises
    ------
    TypeError
        If ``k``, ``sweep`` or ``blocks`` is not an integer.
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

    or the same of real matrices, as :func:`torch.nn.init.orthogonal_` fills them, with the
    canonical metric :math:`\langle u, v \rangle = \operatorname{Re tr}(u^H (I - \frac12 x x^H) v)`.
    Points have shape (*, n, p), any number of batch dimensions, dtype float32, float64, complex64
    or complex128. Tangent vectors at a tall x are :math:`\Omega x`, :math:`\Omega`
    skew-Hermitian. A wide x is treated as its transpose, which is tall; what follows is of tall
    ones.

    A gradient d has the generator :math:`\Omega = d x^H - x d^H`, and a step rotates x from the
    left, :math:`x \leftarrow x + W (P - I) W^H x`, as on :class:`LowRankUnitary`. For n = p this
    is the same set with twice the gradient: halve the learning rate.

    ``egrad2rgrad``, ``retr``, ``retr_transp`` and ``transp_follow_retr`` cost
    :math:`O(knp)` and have no derivative; ``projx`` costs :math:`O(np)` for a point that is on the
    manifold to rounding, else :math:`O(np^2)` as ``proju``, ``inner`` and ``transp``; ``expmap``
    costs :math:`O(n^3)`, as a retraction does for k=None. ``dist`` and ``logmap`` are not
    available.

    Parameters
    ----------
    k : int, "auto" or None
        The rank of a step: how many planes it turns, 1 <= k <= min(p, n // 2), n the longer side.
        "auto", the default: min(8, p, n // 2). None: all planes.
    retraction, sketch, sweep
        as of :class:`LowRankUnitary`; the sweep is of columns, for wide x of rows
    blocks : int
        How many matrices lie one above the other in each point, which then has shape
        (*, blocks n, p). Each is on the manifold and moves by itself.

    Raises
    ------
    TypeError
        If ``k``, ``sweep`` or ``blocks`` is not an integer.
    ValueError
        If an argument is out of range or not one of the names above.

    Notes
    -----
    ``retr`` follows a vector of rank at most 2k exactly, as ``egrad2rgrad`` returns them: its
    generator :math:`u x^H - x u^H - x \operatorname{skewh}(x^H u)\, x^H` has rank at most 4k.

    With k=None ``inner`` and ``egrad2rgrad`` are those of :class:`geoopt.CanonicalStiefel`.
    ``proju`` and ``retr`` are not: those of geoopt 0.5 are no projection and not of first order.

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
