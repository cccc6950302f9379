r"""One step of a gated recurrent unit, and the loop of it, as torch's own operations.

.. math::

    r &= \sigma(W_r x + b_r + G_r h + b'_r), \quad z = \sigma(W_z x + b_z + G_z h + b'_z) \\
    c &= \varphi(W_c x + b_c + r \odot (U h + b'_c)), \quad h' = (1 - z) \odot c + z \odot h

The rows of a weight or a bias that has parts for r, z and c have them in this order.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..activation import activated
from .order import Order
from .unrolled import unroll


class GatedWeights(NamedTuple):
    """The parameters of one direction of one layer, n features out of m."""

    ih: Tensor
    """(3n, m), W of r, z and c"""
    hh: Tensor
    """(n, n), U"""
    gates: Tensor
    """(2n, n), G of r and z"""
    bias_ih: Tensor | None
    """(3n,), b of r, z and c"""
    bias_hh: Tensor | None
    """(3n,), b' of r, z and c"""
    offset: Tensor | None
    """(n,), of a modReLU"""


def gated_step(u: Tensor, h: Tensor, weights: GatedWeights, nonlinearity: str) -> Tensor:
    """Return the state (rows, n) after h, for :math:`u = W x + b` (rows, 3n)."""
    n = h.shape[-1]
    gates_bias = hh_bias = None
    if weights.bias_hh is not None:
        gates_bias, hh_bias = weights.bias_hh.split([2 * n, n])
    of_gates, of_c = u.split([2 * n, n], -1)
    r, z = torch.sigmoid(of_gates + linear(h, weights.gates, gates_bias)).chunk(2, -1)
    inner = of_c + r * linear(h, weights.hh, hh_bias)
    c = activated(inner, nonlinearity, weights.offset)
    return c + z * (h - c)


def unrolled_gates(
    x: Tensor, h0: Tensor | None, weights: GatedWeights, nonlinearity: str, order: Order
) -> tuple[Tensor, Tensor]:
    """Return all states, and the last state of each sequence, as :func:`~.gated_recurrence.recur`.

    The state before the first step is zero if ``h0`` is None.
    """

    # In quotes: torch 2.8 exports no function that makes a union of types.
    def step(u: Tensor, h: "Tensor | None") -> Tensor:
        if h is None:
            h = torch.zeros_like(u[:, : weights.hh.shape[0]])
        return gated_step(u, h, weights, nonlinearity)

    return unroll(linear(x, weights.ih, weights.bias_ih), h0, step, order)
