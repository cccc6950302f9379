"""A linear layer with orthonormal rows or columns."""

import math
from typing import Any

import torch

from ..linalg.precision import WIDE
from .keeping import KeepsManifolds, keep_manifolds
from .placing import put_on, without_x
from .starting import check_init, initial, manifold_for

__all__ = ["OrthogonalLinear"]


class OrthogonalLinear(KeepsManifolds, torch.nn.Linear):
    r"""A linear layer whose weight has orthonormal columns, or rows: torch.nn.Linear's otherwise.

    With out_features >= in_features :math:`\lVert Wx \rVert = \lVert x \rVert`; with fewer
    the layer drops directions and keeps the norm of the rest, :math:`W W^\top = I`. The weight,
    (out_features, in_features), is a geoopt.ManifoldParameter on
    :class:`~geoopt_projunn.LowRankStiefel`, of a square layer on
    :class:`~geoopt_projunn.LowRankUnitary`: train it with an optimizer of this package or of
    geoopt. Arguments, calls and the state_dict are those of torch.nn.Linear.

    Parameters
    ----------
    in_features, out_features : int
        size of each input and output
    bias : bool
        add a bias
    device, dtype
        of the parameters; the dtype is torch.float32 or torch.float64
    k : int or None
        Rank of a step, 1 <= k <= min(p, n // 2), n the larger of the two sizes and p the smaller;
        None for full rank.
    retraction, sketch
        of the manifold
    init : {"haar", "identity", "henaff", "cayley"}
        Where the weight starts, see :mod:`geoopt_projunn.init`; the last two for square layers
        only. "identity" has ones on the diagonal and zeros elsewhere. The bias starts as
        torch.nn.Linear's.

    Raises
    ------
    TypeError, ValueError
        If an argument is of the wrong kind or out of range.

    Notes
    -----
    The real-valued layer stays real, and its weight on the manifold, whatever converts, loads or
    copies it; half precision and DTensors are errors. Products run in the precision that torch is
    set to, as torch.nn.Linear's do.

    Examples
    --------
    >>> layer = OrthogonalLinear(128, 512, k=8)
    >>> x = torch.randn(3, 128)
    >>> bool(torch.allclose((layer(x) - layer.bias).norm(dim=-1), x.norm(dim=-1), rtol=1e-4))
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        k: int | None = 1,
        retraction: str = "exponential",
        sketch: str = "tangent",
        init: str = "haar",
    ) -> None:
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if dtype not in WIDE or dtype.is_complex:
            raise TypeError(
                f"`dtype` of OrthogonalLinear must be torch.float32 or torch.float64, got {dtype}."
            )
        shape = out_features, in_features
        manifold = manifold_for(shape, k, retraction=retraction, sketch=sketch)
        check_init(init, shape)
        fits, reason = manifold.check_point(torch.empty(shape, device="meta"), explain=True)
        if not fits:
            raise ValueError(f"`weight` of OrthogonalLinear does not fit: {without_x(reason)}")
        super().__init__(in_features, out_features, bias, device, dtype)
        self.init = init
        put_on(self.weight, manifold)
        keep_manifolds(self)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight by ``init`` and the bias as torch.nn.Linear does, anew."""
        weight, manifold = self.weight, getattr(self.weight, "manifold", None)
        if manifold is None:
            # torch's constructor calls this before the weight has one.
            return
        factory: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
        weight.copy_(initial(manifold, weight.shape, self.init, **factory))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            self.bias.uniform_(-bound, bound)

    def extra_repr(self) -> str:
        """Return the arguments that tell two layers apart."""
        manifold = getattr(self.weight, "manifold", None)
        steps = "" if manifold is None else f", {manifold.extra_repr()}"
        return f"{super().extra_repr()}{steps}, init={self.init}"

    def _counterpart(self) -> str:
        return ""
