"""Recurrent layers with orthogonal or unitary recurrent weights."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ..low_rank_manifold import Rank
from ..manifolds import LowRankUnitary
from .arguments import integers
from .layer import RecurrentLayer
from .recurrences.order import Order
from .recurrences.recurrence import recur
from .recurrences.unrolled import Weights

__all__ = ["OrthogonalRNN", "UnitaryRNN"]


class _RNN(RecurrentLayer, torch.nn.RNN):
    _DIMENSIONS = "RNN: Expected input to be 2D or 3D, got {}D tensor instead"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "modrelu",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
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
        known, dtype = self._options(nonlinearity, init, dtype, bidirectional=bidirectional)
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            known,
            bias=bias,
            batch_first=batch_first,
            dropout=dropout,
            bidirectional=bidirectional,
            device=device,
            dtype=dtype,
            **unsupported,
        )
        self._finish(nonlinearity, manifold, [names[1] for names in self._all_weights])
        self.mode = f"RNN_{nonlinearity.upper()}"

    @property
    def _fused(self) -> bool:  # type: ignore[override]
        """Whether to run torch's kernels; on a CPU those are slower than ours and keep more."""
        known = not self.is_complex and self.nonlinearity != "modrelu"
        # During a conversion the weight may not be there.
        weight = getattr(self, "weight_hh_l0", None)
        return known and weight is not None and weight.is_cuda

    def _recur(
        self, x: Tensor, h0: Tensor | None, suffix: str, order: Order
    ) -> tuple[Tensor, Tensor]:
        weights = Weights(
            getattr(self, f"weight_ih_{suffix}"),
            getattr(self, f"weight_hh_{suffix}"),
            getattr(self, f"bias_ih_{suffix}") if self.bias else None,
            getattr(self, f"bias_hh_{suffix}") if self.bias else None,
            self._offset(f"_{suffix}"),
        )
        return recur(x, h0, weights, nonlinearity=self.nonlinearity, order=order)


class OrthogonalRNN(_RNN):
    r"""A torch.nn.RNN whose recurrent weights are orthogonal.

    .. math::

        h_t = \varphi(W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh}), \quad W_{hh}^\top W_{hh} = I

    Arguments, inputs, outputs and names of parameters are those of torch.nn.RNN; with equal
    weights and the nonlinearity "relu" or "tanh", so are the values. The recurrent weights are
    geoopt.ManifoldParameter on :class:`LowRankUnitary`: train the layer with an optimizer of
    this package, or of geoopt.

    Parameters
    ----------
    input_size, hidden_size : int
        features of the input and of the state, n
    num_layers : int
        stacked layers
    nonlinearity : {"modrelu", "relu", "tanh"}
        modReLU adds a learned offset to the modulus of each number of a state and keeps its sign
        (in a complex layer, its phase). The offsets ``offset_l0``, … start at 0, which makes it the
        identity: at the start the layer exactly preserves differences between states.
    bias, batch_first, dropout, bidirectional
        as in torch.nn.RNN
    device, dtype
        of the parameters; float32 or float64
    k : int, "auto" or None
        How many planes a step turns, 1 <= k <= n // 2; "auto": min(8, n // 2); None: all.
    retraction, sketch : str
        of :class:`LowRankUnitary`
    init : {"henaff", "cayley", "identity", "haar"}
        recurrent weights to start from, see :mod:`geoopt_projunn.init`. A step never changes
        the sign of their determinant: the first three start at +1, "haar" at either.

    Attributes
    ----------
    weight_ih_l0, … : torch.nn.Parameter
        (n, inputs), initialised by Glorot and Bengio's uniform law
    weight_hh_l0, … : geoopt.ManifoldParameter
        (n, n)
    bias_ih_l0, bias_hh_l0, … : torch.nn.Parameter
        (n,), initialised to 0
    offset_l0, … : torch.nn.Parameter
        (n,), of a modReLU, also with ``bias=False``; initialised to 0

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown or out of range.

    Notes
    -----
    **On a GPU**, "relu" and "tanh" run cuDNN's kernels, with their limits: second derivatives, and
    states that were changed in place, raise an error. In
    ``with torch.backends.cudnn.flags(enabled=False):`` they run as modReLU does, without these
    limits. For modReLU, on a GPU of compute capability 8 or later with Triton, one launch
    takes all time steps forward, and at most eight take them backward; packed sequences take one
    more for each of their lengths. This holds for up to 256 units in float32, 192 in complex64 and
    float64, and 128 in complex128, and for batches of up to 2048 (of large layers, 300 to 1000).
    Beyond that, each time step has two launches each way, the product and the modReLU.

    **Backward.** The layer keeps the input and the states for the backward pass and returns a
    copy of the states, which may be changed in place in any way. modReLU's derivatives are taken
    to be 0 where the state is 0. With ``create_graph=True`` the backward pass runs the recurrence
    again as a loop of torch's operations, and derivatives of any order are right; it raises an
    error if biases or other arguments have been changed in place since. The same loop runs under
    torch.func and vmap, in forward mode, for tensor subclasses, in torch.export and in
    torch.jit.trace. It takes 1.2 to 2.2 times the time, and with a modReLU keeps 2 to 4 times the
    memory.

    **Precision.** Forward and backward pass run in the precision of the parameters, also in
    autocast and where float32 products are reduced to TF32 or bfloat16. In the loop, this
    holds for the forward pass only; products of its backward pass, as under torch.func.grad, run
    in the precision that the user has set, and in bfloat16 if that call is within autocast.

    **Programs.** A traced layer takes any batch size, an exported one if ``dynamic_shapes`` says
    so; both take sequences of one length, and no packed ones. torch.jit.script does not work.
    torch.compile leaves out every function that calls a torch.nn.RNN, and so this layer too.

    **Conversions and loads** keep the manifold. A conversion to half precision or to a complex
    dtype is an error. ``.to("meta")``, ``to_empty`` of a layer there and
    ``load_state_dict(assign=True)`` make new parameters, as in every module; make the optimizer
    afterwards. After ``to_empty`` call ``reset_parameters`` or load.

    A layer with ``nonlinearity="tanh"`` or ``"relu"`` loads the weights of a torch.nn.RNN. They
    are not orthogonal: call
    ``project_(layer)`` (:func:`project_`) afterwards, which moves the recurrent ones to the nearest
    orthogonal matrices.

    Examples
    --------
    >>> import torch
    >>> layer = OrthogonalRNN(3, 8)
    >>> states, last = layer(torch.randn(5, 2, 3))
    >>> states.shape, last.shape
    (torch.Size([5, 2, 8]), torch.Size([1, 2, 8]))
    >>> layer.weight_hh_l0.manifold
    LowRankUnitary(k=auto, retraction=exponential, sketch=tangent) manifold
    """

    is_complex: ClassVar[bool] = False


class UnitaryRNN(_RNN):
    r"""A recurrent layer with complex states and unitary recurrent weights.

    Like :class:`OrthogonalRNN`, with :math:`W_{hh}^H W_{hh} = I` and

    - dtype complex64 (the default for torch's default dtype float32) or complex128;
    - complex input, or real input of the same precision, which is converted to complex;
    - "relu" and "tanh" applied to the real and imaginary parts separately;
    - complex biases, real offsets, and the Glorot variance shared by the two parts of an input
      weight.

    The states are complex. :class:`RealReadout` maps them to real outputs.

    A conversion changes the precision and stays complex: ``.double()`` and
    ``.to(torch.float64)`` make complex128.

    Examples
    --------
    >>> import torch
    >>> from geoopt_projunn.nn import RealReadout
    >>> layer, readout = UnitaryRNN(3, 8), RealReadout(8, 2)
    >>> states, last = layer(torch.randn(5, 2, 3))
    >>> states.dtype, readout(states).shape
    (torch.complex64, torch.Size([5, 2, 2]))
    """

    is_complex: ClassVar[bool] = True
