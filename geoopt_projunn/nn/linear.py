"""A linear layer with orthonormal rows or columns."""

import math

import torch

from ..arguments import assert_flag
from ..low_rank_manifold import Rank
from .arguments import checked_dtype, integers
from .keeping import KeepsManifolds, record_manifolds
from .placing import put_on
from .starting import assert_fits, check_init, manifold_for, start_at, steps_of

__all__ = ["OrthogonalLinear"]


class OrthogonalLinear(KeepsManifolds, torch.nn.Linear):
    r"""A torch.nn.Linear whose weight has orthonormal columns or rows.

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
    k : int, "auto" or None
        How many planes a step turns, 1 <= k <= min(p, n // 2), n the larger of the two sizes and p
        the smaller; "auto": 8, or the highest that is allowed if that is less; None: all.
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
    Conversions, loads and copies keep the layer real and its weight on the manifold. Half precision
    is an error, and so are DTensors outside of
    :func:`geoopt_projunn.distributed.keep_manifolds`. Products run in the precision that torch is
    set to, as in torch.nn.Linear.

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
        k: Rank = "auto",
        retraction: str = "exponential",
        sketch: str = "tangent",
        init: str = "haar",
    ) -> None:
        assert_flag("bias", bias)
        dtype = checked_dtype(self, dtype, False, self._counterpart())
        in_features, out_features = integers(in_features=in_features, out_features=out_features)
        shape = out_features, in_features
        manifold = manifold_for(shape, k, retraction=retraction, sketch=sketch)
        check_init(init, shape)
        assert_fits("weight", self, torch.empty(shape, dtype=dtype, device="meta"), manifold)
        super().__init__(in_features, out_features, bias, device, dtype)
        self.init = init
        put_on(self.weight, manifold)
        record_manifolds(self)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weight by ``init`` and the bias as torch.nn.Linear does, anew."""
        if not hasattr(self, "init"):
            # torch's constructor calls this before the weight is on its manifold.
            return
        start_at(self.weight, self.init)
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            self.bias.uniform_(-bound, bound)

    def extra_repr(self) -> str:
        """Return the arguments that tell two layers apart."""
        return f"{super().extra_repr()}{steps_of(getattr(self, 'weight', None))}, init={self.init}"

    def _counterpart(self) -> str:
        return ""
