"""Stochastic gradient descent at low rank."""

from collections.abc import Iterable, Mapping
from typing import Any

import geoopt
import torch

from .base import ProjUNNOptimizer, check_range
from .rules import Buffers

__all__ = ["ProjUNNRiemannianSGD"]


class _Momentum:
    """Heavy-ball or Nesterov momentum of ambient gradients, as in torch.optim.SGD."""

    def buffer_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def first_buffers(self, x: torch.Tensor, group: Mapping[str, Any]) -> Buffers:
        return {
            name: torch.zeros_like(x, memory_format=torch.contiguous_format)
            for name in self.buffer_names(group)
        }

    def propose(
        self, grad: torch.Tensor, buffers: Buffers, taken: torch.Tensor, group: Mapping[str, Any]
    ) -> tuple[torch.Tensor, Buffers]:
        momentum = group["momentum"]
        if momentum == 0:
            return grad, {}
        # As in torch, the first step of a parameter takes the gradient undamped.
        share = (1 - group["dampening"] * (taken > 0).double()).to(grad.real.dtype)
        buffer = torch.addcmul(buffers["momentum_buffer"] * momentum, grad, share[:, None, None])
        direction = grad + momentum * buffer if group["nesterov"] else buffer
        return direction, {"momentum_buffer": buffer}


class ProjUNNRiemannianSGD(ProjUNNOptimizer):
    r"""Stochastic gradient descent with rank-k steps on LowRankUnitary.

    A parameter on :class:`~geoopt_projunn.LowRankUnitary` moves along the sketch of its
    direction :math:`D`, the gradient or its momentum average in the ambient space:

    .. math::

        x \leftarrow x + W (P - I) W^H x, \qquad
        W \operatorname{skewh}(K) W^H \approx -\eta \operatorname{skewh}(D x^H)

    Parameters on another geoopt manifold are stepped by
    :class:`geoopt.optim.RiemannianSGD`, plain ones by :class:`torch.optim.SGD`; the groups
    may mix them. Arguments and defaults are those of :class:`torch.optim.SGD`.

    Parameters
    ----------
    params : iterable
        parameters or dicts that define groups
    lr : float or torch.Tensor
        Learning rate. On LowRankUnitary a unit moves x along the geodesic with velocity equal
        to the (sketched) Riemannian gradient :math:`\frac12 (D - x D^H x)`, as
        :class:`geoopt.optim.RiemannianSGD` does.
    momentum : float
        Momentum factor. On LowRankUnitary the buffer lives in the ambient space and its
        tangent part at the current point is what counts.
    dampening : float
        dampening for momentum
    weight_decay : float
        L2 penalty. It has no effect on LowRankUnitary, where the norm is constant.
    nesterov : bool
        use Nesterov momentum; needs a momentum and no dampening
    maximize : bool
        ascend instead of descend
    stabilize : int, optional
        project every parameter on its manifold after this many steps (default: never)

    Raises
    ------
    ValueError, TypeError
        for a hyperparameter that is out of range or not supported

    Notes
    -----
    :math:`O(kn^2)` time for each matrix and step, without waiting for the device. A step that is
    not finite leaves a matrix and its state as they are; ``skipped_steps`` counts them.

    References
    ----------
    Kiani et al., arXiv:2203.05483, Algorithm 1.
    """

    _rule = _Momentum()
    _plain = torch.optim.SGD
    _riemannian = geoopt.optim.RiemannianSGD
    _takes_sparse = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        stabilize: int | None = None,
        **unsupported: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        super().__init__(params, defaults, stabilize, unsupported)

    def _validate(self, group: dict[str, Any]) -> None:
        super()._validate(group)
        check_range("momentum", group["momentum"], 0.0)
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                "`nesterov` needs momentum > 0 and dampening = 0, got "
                f"momentum={group['momentum']}, dampening={group['dampening']}."
            )
