"""Gated recurrent units with orthogonal recurrent weights."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..arguments import checked_integer
from ..low_rank_manifold import Rank
from ..manifolds import LowRankUnitary
from .arguments import integers
from .cell import RecurrentCell
from .layer import RecurrentLayer
from .recurrences.gated import GatedWeights, gated_step
from .recurrences.gated_recurrence import recur
from .recurrences.order import Order
from .recurrent import Recurrent

__all__ = ["OrthogonalGRU", "OrthogonalGRUCell"]


class _Gated(Recurrent):
    """The rows of torch's recurrent weight apart: those of the gates, and the orthogonal ones."""

    is_complex: ClassVar[bool] = False

    def _finish(self, nonlinearity: str, manifold: LowRankUnitary, names: list[str]) -> None:
        n = self.hidden_size
        for name in names:
            whole = getattr(self, name).detach()
            setattr(self, name, torch.nn.Parameter(whole.new_empty(n, n)))
            gates = torch.nn.Parameter(whole.new_empty(2 * n, n))
            self.register_parameter(name.replace("weight_hh", "weight_gates"), gates)
        super()._finish(nonlinearity, manifold, names)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        r"""Draw all parameters anew.

        ``weight_hh`` by ``init``; the n rows of each gate and of the candidate uniformly with
        Glorot's variance :math:`2 / (\text{inputs} + n)`; biases and offsets 0.
        """
        # torch's constructor calls this before the weights are apart.
        if any(name.startswith("weight_gates") for name in self._parameters):
            super().reset_parameters()

    def _counterpart(self) -> str:
        return ""

    def _gated_weights(self, suffix: str = "") -> GatedWeights:
        return GatedWeights(
            getattr(self, f"weight_ih{suffix}"),
            getattr(self, f"weight_hh{suffix}"),
            getattr(self, f"weight_gates{suffix}"),
            getattr(self, f"bias_ih{suffix}") if self.bias else None,
            getattr(self, f"bias_hh{suffix}") if self.bias else None,
            self._offset(suffix),
        )


class OrthogonalGRU(_Gated, RecurrentLayer, torch.nn.GRU):
    r"""A torch.nn.GRU whose candidate has an orthogonal recurrent weight.

    .. math::

        r_t &= \sigma(W_r x_t + b_r + G_r h_{t-1} + b'_r), \quad
        z_t = \sigma(W_z x_t + b_z + G_z h_{t-1} + b'_z) \\
        c_t &= \varphi(W_c x_t + b_c + r_t \odot (U h_{t-1} + b'_c)), \quad
        U^\top U = I \\
        h_t &= (1 - z_t) \odot c_t + z_t \odot h_{t-1}

    This is the gated orthogonal recurrent unit. The orthogonal U keeps the state from
    growing and vanishing, and the gates let it forget. Arguments, inputs and outputs are those of
    torch.nn.GRU. With ``nonlinearity="tanh"`` so are the values, if the
    ``weight_hh_l0`` of torch.nn.GRU is the ``weight_gates_l0`` of this layer stacked on its
    ``weight_hh_l0``, and all other parameters are equal.
    U is a geoopt.ManifoldParameter on :class:`LowRankUnitary`: train the layer with an optimizer
    of this package, or of geoopt.

    Parameters
    ----------
    input_size, hidden_size : int
        features of the input and of the state, n
    num_layers, bias, batch_first, dropout, bidirectional
        as in torch.nn.GRU
    device, dtype
        of the parameters; float32 or float64
    nonlinearity : {"modrelu", "relu", "tanh"}
        :math:`\varphi`. modReLU has learned offsets ``offset_l0``, …. They start at 0, which makes
        it the identity.
    k : int, "auto" or None
        How many planes a step turns, 1 <= k <= n // 2; "auto": min(8, n // 2); None: all.
    retraction, sketch : str
        of :class:`LowRankUnitary`
    init : {"henaff", "cayley", "identity", "haar"}
        U to start from, see :mod:`geoopt_projunn.init`

    Attributes
    ----------
    weight_ih_l0, … : torch.nn.Parameter
        (3n, inputs), the rows of r, of z and of c
    weight_hh_l0, … : geoopt.ManifoldParameter
        (n, n), U
    weight_gates_l0, … : torch.nn.Parameter
        (2n, n), the rows of r and of z. These weights and the input weights are initialised by
        Glorot and Bengio's uniform law, separately for each of r, z and c.
    bias_ih_l0, bias_hh_l0, … : torch.nn.Parameter
        (3n,), b and b', of r, of z and of c; initialised to 0
    offset_l0, … : torch.nn.Parameter
        (n,), of a modReLU, also with ``bias=False``; initialised to 0

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown or out of range.

    Notes
    -----
    For the backward pass the layer keeps the input, the states and four numbers
    for each number of a state. It returns a copy of the states, which may be changed in place.
    modReLU's derivatives are taken to be 0 where the candidate is 0. The notes of
    :class:`OrthogonalRNN` on precision, higher derivatives, transforms, exported programs,
    compilation, conversions and loads hold here too; torch's kernels are not used on any device.

    To load the weights of a torch.nn.GRU, split their rows first::

        n = layer.hidden_size
        state = gru.state_dict()
        for name in [name for name in state if name.startswith("weight_hh")]:
            gates, state[name] = state[name].split([2 * n, n])
            state[name.replace("hh", "gates")] = gates

    U is not orthogonal then: call ``project_(layer)`` (:func:`project_`). Load with
    ``strict=False``, or ``nonlinearity="tanh"``: torch.nn.GRU has no offsets.

    References
    ----------
    Jing, Gulcehre, Peurifoy, Shen, Tegmark, Soljačić, Bengio, *Gated Orthogonal Recurrent Units:
    On Learning to Forget*, arXiv:1706.02761. Cho et al., arXiv:1406.1078, have the gates.

    Examples
    --------
    >>> import torch
    >>> layer = OrthogonalGRU(3, 8)
    >>> states, last = layer(torch.randn(5, 2, 3))
    >>> states.shape, last.shape
    (torch.Size([5, 2, 8]), torch.Size([1, 2, 8]))
    >>> layer.weight_hh_l0.manifold
    LowRankUnitary(k=auto, retraction=exponential, sketch=tangent) manifold
    """

    _DIMENSIONS = "GRU: Expected input to be 2D or 3D, got {}D instead"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        nonlinearity: str = "modrelu",
        k: Rank = "auto",
        retraction: str = "exponential",
        sketch: str = "tangent",
        init: str = "henaff",
        **unsupported: Any,
    ) -> None:
        manifold = LowRankUnitary(k, retraction=retraction, sketch=sketch)
        # What is out of range is left to torch's class.
        input_size, hidden_size, num_layers = integers(
            None, input_size=input_size, hidden_size=hidden_size, num_layers=num_layers
        )
        _, dtype = self._options(nonlinearity, init, dtype, bidirectional=bidirectional)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            **unsupported,
        )
        self._finish(nonlinearity, manifold, [names[1] for names in self._all_weights])
        for names in self._all_weights:
            names.append(names[1].replace("weight_hh", "weight_gates"))
        self._init_flat_weights()

    def _recur(
        self, x: Tensor, h0: Tensor | None, suffix: str, order: Order
    ) -> tuple[Tensor, Tensor]:
        weights = self._gated_weights(f"_{suffix}")
        return recur(x, h0, weights, nonlinearity=self.nonlinearity, order=order)


class OrthogonalGRUCell(_Gated, RecurrentCell, torch.nn.GRUCell):
    r"""A torch.nn.GRUCell whose candidate has an orthogonal recurrent weight.

    One time step of :class:`OrthogonalGRU`, differentiable any number of times. Arguments, inputs
    and outputs are those of torch.nn.GRUCell; what follows ``dtype`` is that of
    :class:`OrthogonalGRU`. A loop of cells is slower than the layer and needs more memory.
    The forward pass runs in the precision of the parameters; the backward pass is torch's own, and
    its products run in the precision that torch's settings, and autocast around it, say.

    Attributes
    ----------
    weight_ih, bias_ih, bias_hh : torch.nn.Parameter
        (3n, inputs), (3n,), (3n,)
    weight_hh : geoopt.ManifoldParameter
        (n, n)
    weight_gates : torch.nn.Parameter
        (2n, n)
    offset : torch.nn.Parameter
        (n,), of a modReLU

    Examples
    --------
    >>> cell = OrthogonalGRUCell(3, 8)
    >>> h = cell(torch.randn(2, 3))
    >>> cell(torch.randn(2, 3), h).shape
    torch.Size([2, 8])
    """

    _NAME = "GRUCell"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        nonlinearity: str = "modrelu",
        k: Rank = "auto",
        retraction: str = "exponential",
        sketch: str = "tangent",
        init: str = "henaff",
    ) -> None:
        manifold = LowRankUnitary(k, retraction=retraction, sketch=sketch)
        _, dtype = self._options(nonlinearity, init, dtype, bias=bias)
        input_size = checked_integer("input_size", input_size, least=0)
        hidden_size = checked_integer("hidden_size", hidden_size)
        super().__init__(input_size, hidden_size, bias, device=device, dtype=dtype)
        self._finish(nonlinearity, manifold, ["weight_hh"])

    def _step(self, x: Tensor, hx: Tensor | None) -> Tensor:
        weights = self._gated_weights()
        if hx is None:
            hx = x.new_zeros(x.shape[0], self.hidden_size)
        u = linear(x, weights.ih, weights.bias_ih)
        return gated_step(u, hx, weights, self.nonlinearity)
