"""Adam at low rank."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import geoopt
import torch

from ..arguments import assert_flag, assert_known, check_range
from ..backends.spec import Buffers, NativeRule, Proposal, Total
from .base import ProjUNNOptimizer
from .options import on_device

__all__ = ["ProjUNNRiemannianAdam"]

# And what their state is called: a group that changes from one to the other starts afresh.
_SECOND_MOMENTS = {
    "elementwise": "exp_avg_sq",
    "scalar": "exp_avg_norm_sq",
    "mean": "exp_avg_norm_sq",
}


class _Adam:
    """Bias-corrected moments of ambient gradients."""

    is_linear = False
    known_buffers = frozenset(
        ("exp_avg", *(f"{of}{name}" for of in ("", "max_") for name in _SECOND_MOMENTS.values()))
    )

    def buffer_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        second = _SECOND_MOMENTS[group["second_moment"]]
        return ("exp_avg", second, f"max_{second}") if group["amsgrad"] else ("exp_avg", second)

    def first_buffers(self, x: torch.Tensor, group: Mapping[str, Any]) -> Buffers:
        first = torch.zeros_like(x, memory_format=torch.contiguous_format)
        square = first.real if group["second_moment"] == "elementwise" else first.real[..., :1, :1]
        return {
            name: first if name == "exp_avg" else torch.zeros_like(square).contiguous()
            for name in self.buffer_names(group)
        }

    def propose(
        self,
        grad: torch.Tensor,
        buffers: Buffers,
        taken: torch.Tensor,
        group: Mapping[str, Any],
        total: Total | None = None,
    ) -> Proposal:
        name = _SECOND_MOMENTS[group["second_moment"]]
        beta1, beta2 = (on_device(beta, grad.device) for beta in group["betas"])
        square = grad.real.square() if not grad.is_complex() else grad.real**2 + grad.imag**2
        if group["second_moment"] != "elementwise":
            square = square.sum((-2, -1), keepdim=True)
            square = square if total is None else total(square)
        second = _averaged(buffers[name], square, beta2)
        proposed = {"exp_avg": _averaged(buffers["exp_avg"], grad, beta1), name: second}
        if group["amsgrad"]:
            second = torch.maximum(buffers[f"max_{name}"], second)
            proposed[f"max_{name}"] = second
        step = (taken + 1).to(torch.float64)
        correction1 = (1 - beta1**step).to(second.dtype)[:, None, None]
        correction2 = (1 - beta2**step).to(second.dtype)[:, None, None]
        # In the memory of the squares, which are not needed any more.
        scale = torch.div(second, correction2, out=square).sqrt_().add_(group["eps"])
        return Proposal(proposed["exp_avg"] / scale.mul_(correction1), proposed)

    def withdrawn(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        return {}

    def unit(self, group: Mapping[str, Any], entries: int) -> float:
        is_mean = group["second_moment"] == "mean" and group["normalize"] is None
        return math.sqrt(entries) if is_mean else 1.0

    def tangent_momentum(self, group: Mapping[str, Any]) -> None:
        return None

    def native(self, group: Mapping[str, Any]) -> NativeRule | None:
        return NativeRule("adam", self.buffer_names(group), (*group["betas"], group["eps"]))


def _averaged(
    average: torch.Tensor, value: torch.Tensor, beta: float | torch.Tensor
) -> torch.Tensor:
    weight = 1 - beta
    # lerp asks for a tensor of the dtype of its arguments.
    return average.lerp(
        value, weight.to(average.dtype) if isinstance(weight, torch.Tensor) else weight
    )


class ProjUNNRiemannianAdam(ProjUNNOptimizer):
    r"""Adam with rank-k steps of orthogonal and unitary parameters.

    *Orthogonal parameters* are those on :class:`~geoopt_projunn.LowRankUnitary` or
    :class:`~geoopt_projunn.LowRankStiefel`. Such a parameter moves along a low-rank approximation
    (a sketch) of Adam's direction, :math:`D = \hat m / (\sqrt{\hat v} + \epsilon)`, where the
    second moment :math:`\hat v` is one number for each matrix, unless ``second_moment`` says
    otherwise:

    .. math::

        x \leftarrow x + W (P - I) W^H x, \qquad
        W \operatorname{skewh}(K) W^H \approx \operatorname{skewh}(D x^H), \qquad
        P = \exp(-\eta \operatorname{skewh}(K)),

    with :math:`\operatorname{skewh}(A) = \frac12 (A - A^H)` and the learning rate :math:`\eta`.
    W has 2k orthonormal columns. This P is that of the default retraction, the exponential; the
    other retractions compute another rotation from :math:`-\eta K`.

    On LowRankStiefel the generator is twice as long, :math:`D x^H - x D^H`. All else is the same.

    Parameters on another geoopt manifold take the steps of :class:`geoopt.optim.RiemannianAdam`,
    plain ones those of :class:`torch.optim.Adam`, always with elementwise second moments. A group
    may hold all kinds. All arguments of :class:`torch.optim.Adam` except ``differentiable`` are
    supported, with the same defaults.

    Parameters
    ----------
    params : iterable
        parameters or dicts that define groups
    lr : float or torch.Tensor
        Learning rate; its unit for orthogonal parameters depends on ``second_moment`` and
        ``normalize``.
    betas : tuple of float or of torch.Tensor
        Decay of the moments; (0, α) is the paper's RMSprop with smoothing α, with Adam's bias
        correction.
    eps : float
        Added to the denominator. With "mean" and "scalar" it is added to the norm of the matrix,
        which "mean" then divides by the root of the number of entries.
    weight_decay : float
        L2 penalty, or with ``decoupled_weight_decay`` AdamW's. It has no effect on orthogonal
        parameters, whose norm is constant.
    amsgrad : bool
        divide by the largest second moment so far
    normalize : {None, "angle", "spectral"}
        What ``lr`` means for orthogonal parameters. None: a multiple of the direction. "angle": the
        root mean square angle, in radians, of the k planes that a step turns. "spectral": the angle
        of each of them. Such steps do not shrink with the gradient: let ``lr`` decay to zero.
    second_moment : {"mean", "scalar", "elementwise"}
        What the first moment of an orthogonal parameter is divided by.

        - "mean": one number for each matrix, the root mean square of its entries.
        - "scalar": one number for each matrix, its norm (geoopt takes that of the tangent part).
        - "elementwise": one number for each entry, as in torch's Adam and the paper's RMSprop. The
          tangent part of such a direction may fail to descend, and some runs stalled at points that
          are no solutions. With one number for each matrix no such run was seen.

        With "mean" and "elementwise" the direction has entries of size one,
        :math:`\lVert D \rVert_F \approx n`; with "scalar" it has norm one. At n = 512, a step with
        lr = 1e-3 turns by up to half a radian with "mean" or "elementwise", and by 1e-3 radian with
        "scalar". For complex parameters the square is :math:`|g|^2`, real.
    maximize : bool
        Ascend instead of descend. If it changes during training, the momentum of orthogonal
        parameters changes its direction as well.
    decoupled_weight_decay : bool
        Apply the weight decay apart from the moments, as AdamW does: to plain parameters
        :math:`p \leftarrow (1 - \eta \lambda) p`, on geoopt's manifolds a retraction along
        :math:`-\eta \lambda` times the Riemannian gradient of :math:`\frac12 \lVert p \rVert^2`.
    skip_nonfinite : {"manifold", "all"}
        which parameters skip a step if a gradient is not finite, as in
        :class:`ProjUNNRiemannianSGD`
    foreach, capturable, fused : bool, optional
        which implementation torch uses for the plain parameters; steps of orthogonal parameters
        can be captured in a CUDA graph in any case
    compile : bool
        compile the steps of small real matrices, as in :class:`ProjUNNRiemannianSGD`
    stabilize : int, optional
        project every parameter on its manifold after this many steps (default: never)

    Raises
    ------
    ValueError, TypeError, RuntimeError
        for a hyperparameter that is out of range or not supported, by this package or by torch

    Notes
    -----
    :math:`O(kn^2)` time for each matrix and step, without waiting for the device. The notes of
    :class:`ProjUNNRiemannianSGD` on skipped steps, points off their manifold, steps of length zero
    and steps in radians, with their formulas, hold here too.

    References
    ----------
    Kiani et al., arXiv:2203.05483, section 4. Kingma and Ba, arXiv:1412.6980.
    Bécigneul and Ganea, arXiv:1810.00760.
    """

    _rule = _Adam()
    _plain = torch.optim.Adam
    _riemannian = geoopt.optim.RiemannianAdam
    _takes_sparse = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        second_moment: str = "mean",
        normalize: str | None = None,
        maximize: bool = False,
        decoupled_weight_decay: bool = False,
        skip_nonfinite: str = "manifold",
        foreach: bool | None = None,
        capturable: bool = False,
        fused: bool | None = None,
        compile: bool = False,
        stabilize: int | None = None,
        **unsupported: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "second_moment": second_moment,
            "normalize": normalize,
            "maximize": maximize,
            "decoupled_weight_decay": decoupled_weight_decay,
            "skip_nonfinite": skip_nonfinite,
            "foreach": foreach,
            "capturable": capturable,
            "fused": fused,
            "compile": compile,
        }
        super().__init__(params, defaults, stabilize, unsupported)

    @staticmethod
    def _state_of_others(group: dict[str, Any]) -> tuple[str, ...]:
        return "step", "exp_avg", "exp_avg_sq"

    def _validate(self, group: dict[str, Any]) -> None:
        super()._validate(group)
        betas = group["betas"]
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise ValueError(f"`betas` must be a pair of numbers, got {betas!r}.")
        for index, beta in enumerate(betas):
            check_range(f"betas[{index}]", beta, 0.0, 1.0)
        check_range("eps", group["eps"], 0.0)
        assert_known("second_moment", group["second_moment"], _SECOND_MOMENTS)
        for name in ("amsgrad", "decoupled_weight_decay", "capturable"):
            assert_flag(name, group[name])
