"""Stochastic gradient descent at low rank."""

from collections.abc import Iterable, Mapping
from typing import Any

import geoopt
import torch

from ..arguments import assert_flag, assert_known, check_range
from ..backends.spec import Buffers, NativeRule, Proposal, TangentMomentum, Total
from .base import ProjUNNOptimizer

__all__ = ["ProjUNNRiemannianSGD"]


# What their state is called: a group that changes from one to the other starts afresh.
_MOMENTUM_BUFFERS = {"ambient": "momentum_buffer", "tangent": "generator_buffer"}
_FEEDBACK_BUFFER = "feedback_buffer"


class _Momentum:
    """Momentum of ambient gradients, as in torch.optim.SGD, or with error feedback."""

    is_linear = True
    known_buffers = frozenset((_FEEDBACK_BUFFER, *_MOMENTUM_BUFFERS.values()))

    def buffer_names(self, group: Mapping[str, Any]) -> tuple[str, ...]:
        if group["error_feedback"] is not None:
            return (_FEEDBACK_BUFFER,)
        if group["momentum"] == 0:
            return ()
        return (_MOMENTUM_BUFFERS[group["momentum_space"]],)

    def first_buffers(self, x: torch.Tensor, group: Mapping[str, Any]) -> Buffers:
        names = self.buffer_names(group)
        if _MOMENTUM_BUFFERS["tangent"] in names and x.shape[-2] != x.shape[-1]:
            raise ValueError(
                '`momentum_space` must be "ambient" for matrices that are not square, whose '
                f"generators are larger than they are, got {group['momentum_space']!r} for one of "
                f"shape {tuple(x.shape[-2:])}; give them a group of their own."
            )
        return {name: torch.zeros_like(x, memory_format=torch.contiguous_format) for name in names}

    def propose(
        self,
        grad: torch.Tensor,
        buffers: Buffers,
        taken: torch.Tensor,
        group: Mapping[str, Any],
        total: Total | None = None,
    ) -> Proposal:
        momentum, feedback = group["momentum"], group["error_feedback"]
        if feedback is not None:
            direction = buffers[_FEEDBACK_BUFFER] + grad
            return Proposal(direction, {_FEEDBACK_BUFFER: direction * feedback})
        if momentum == 0:
            return Proposal(grad, {})
        if group["momentum_space"] == "tangent":
            # To which the backend adds the generator of the sketch.
            name = _MOMENTUM_BUFFERS["tangent"]
            return Proposal(grad, {name: momentum * buffers[name]})
        before = buffers["momentum_buffer"]
        # As in torch, the first step of a parameter takes the gradient undamped.
        share = (1 - group["dampening"] * (taken > 0).double()).to(grad.real.dtype)
        buffer = torch.addcmul(before * momentum, grad, share[:, None, None])
        direction = torch.add(grad, buffer, alpha=momentum) if group["nesterov"] else buffer
        return Proposal(direction, {"momentum_buffer": buffer})

    def withdrawn(self, group: Mapping[str, Any]) -> Mapping[str, float]:
        if group["error_feedback"] is None:
            return {}
        return {_FEEDBACK_BUFFER: group["error_feedback"] - group["momentum"]}

    def unit(self, group: Mapping[str, Any], entries: int) -> float:
        return 1.0

    def tangent_momentum(self, group: Mapping[str, Any]) -> TangentMomentum | None:
        if group["momentum_space"] == "ambient" or group["momentum"] == 0:
            return None
        name = _MOMENTUM_BUFFERS["tangent"]
        return TangentMomentum(name, group["momentum"], group["dampening"], group["nesterov"])

    def native(self, group: Mapping[str, Any]) -> NativeRule | None:
        if group["error_feedback"] is not None:
            return None
        if group["momentum"] == 0:
            return NativeRule("gradient", (), ())
        if group["momentum_space"] == "tangent":
            return None
        numbers = group["momentum"], group["dampening"], group["nesterov"]
        return NativeRule("momentum", ("momentum_buffer",), numbers)


class ProjUNNRiemannianSGD(ProjUNNOptimizer):
    r"""Stochastic gradient descent with rank-k steps of orthogonal and unitary parameters.

    *Orthogonal parameters* are those on :class:`~geoopt_projunn.LowRankUnitary` or
    :class:`~geoopt_projunn.LowRankStiefel`. Such a parameter moves along a low-rank approximation
    (a sketch) of its direction :math:`D`, which is the gradient or its momentum average:

    .. math::

        x \leftarrow x + W (P - I) W^H x, \qquad
        W \operatorname{skewh}(K) W^H \approx \operatorname{skewh}(D x^H), \qquad
        P = \exp(-\eta \operatorname{skewh}(K)),

    with :math:`\operatorname{skewh}(A) = \frac12 (A - A^H)` and the learning rate :math:`\eta`.
    W has 2k orthonormal columns. This P is that of the default retraction, the exponential; the
    other retractions compute another rotation from :math:`-\eta K`.

    On LowRankStiefel the generator is twice as long, :math:`D x^H - x D^H`. All else is the same.

    Parameters on another geoopt manifold take the steps of :class:`geoopt.optim.RiemannianSGD`,
    plain ones those of :class:`torch.optim.SGD`. A group may hold all kinds. All arguments of
    :class:`torch.optim.SGD` except ``differentiable`` are supported, with the same defaults.

    Parameters
    ----------
    params : iterable
        parameters or dicts that define groups
    lr : float or torch.Tensor
        Learning rate. An orthogonal parameter x moves along a geodesic by ``lr`` times the
        (sketched) Riemannian gradient :math:`\frac12 (D - x D^H x)`, as with
        :class:`geoopt.optim.RiemannianSGD`.
    momentum : float
        Momentum factor. Only the tangent part of the buffer at the current point moves an
        orthogonal parameter.
    dampening : float
        dampening for momentum
    weight_decay : float
        L2 penalty. It has no effect on orthogonal parameters, whose norm is constant.
    nesterov : bool
        use Nesterov momentum; needs a momentum and no dampening
    normalize : {None, "angle", "spectral"}
        What ``lr`` means for orthogonal parameters. None: a multiple of the direction. "angle": the
        root mean square angle, in radians, of the k planes that a step turns. "spectral": the angle
        of each of them. See Notes.
    momentum_space : {"ambient", "tangent"}
        What momentum adds up for orthogonal parameters. "ambient": gradients :math:`g`. "tangent":
        the generators :math:`G` of their sketches, :math:`B \leftarrow \mu B + G`; the step follows
        a sketch of B; for square matrices only. "ambient" needs fewer steps where the normal part
        of the gradients (the part off the manifold) is small, as it is near the solution of least
        squares with little residual. A normal part that stays large, as for quantized weights, and
        for :math:`\operatorname{tr}(U^H x)` even at :math:`x = U`, adds up in the buffer. When x
        has turned, some of it is tangent and moves x in a wrong direction: take "tangent", or no
        momentum.
    error_feedback : float, optional
        For orthogonal parameters, the share :math:`\phi` in [0, 1) of what a step has left out that
        stays in the buffer for the next one. None: ordinary momentum, as with :math:`\phi = \mu`.
        With :math:`C` the part of the direction that a step follows, and :math:`\mu` the momentum:
        :math:`D = M + g`, then :math:`M \leftarrow \phi (D - C) + \mu C`. If the gradient vanishes
        at the solution, 0.99 averages the noise of small batches, at learning rates below the best
        one without error feedback. If the normal part of the gradient stays, a share near 1 does
        not converge. 0 to 0.5 suit exact gradients. It excludes ``nesterov``, ``dampening`` and
        ``normalize``.
    maximize : bool
        Ascend instead of descend. If it changes during training, the momentum of orthogonal
        parameters changes its direction as well.
    skip_nonfinite : {"manifold", "all"}
        Which parameters skip a step if a gradient is not finite. "manifold": each orthogonal
        matrix whose own step would not be finite. "all": all parameters of the groups with
        this value, if any gradient in this optimizer is not finite. On a GPU "all" needs memory for
        a copy of the orthogonal parameters' gradients, and of the other parameters and their state;
        the host waits only for sparse tensors and DTensors.
    foreach, fused : bool, optional
        which implementation torch uses for the plain parameters
    compile : bool
        Compile the steps of real matrices below n = 512 by :func:`torch.compile`, which makes them
        about twice as fast at n = 128. It is useful only where the C++ kernels do not take whole
        steps: without a compiler at installation, on a GPU, with k = None or with error feedback.
        Results are the same up to rounding. It compiles again, which takes some seconds, for each
        shape, number of parameters of that shape with a gradient, and value of a hyperparameter
        other than ``lr``. So do not use it with a schedule of the momentum.
    stabilize : int, optional
        project every parameter on its manifold after this many steps (default: never)

    Raises
    ------
    ValueError, TypeError, RuntimeError
        for a hyperparameter that is out of range or not supported, by this package or by torch

    Notes
    -----
    :math:`O(kn^2)` time for each matrix and step, without waiting for the device. A step that is
    not finite leaves a matrix and its state as they are; ``skipped_steps`` counts skipped steps,
    and the first one causes a warning. At their first step and after ``load_state_dict``, points
    far off their manifold are an error. After that they are measured every 50 steps, and one that
    is far off causes a warning. A step with ``lr`` = 0 changes no bit of a parameter, except for
    the sign of a zero and for projections that ``stabilize`` asks for. If ``lr`` is a tensor on a
    GPU, or processes share the parameter, the removal of rounding errors goes on after the first
    step. Messages name a parameter if the optimizer was made of ``module.named_parameters()``.

    **Steps in radians.** With :math:`S = \operatorname{skewh}(K)`, the core of the direction's
    sketch, ``normalize`` makes the generator of a step

    .. math::

        -\eta \frac{\sqrt{2k}}{\lVert S \rVert_F} S \quad\text{("angle")}, \qquad
        -\eta\, S (S^H S)^{-1/2} \quad\text{("spectral")},

    whatever the size of the gradient, so that ``lr`` is an angle. Such steps do not shrink with the
    gradient: let ``lr`` decay to zero. For other parameters ``lr`` means what it always does, so
    they need a group of their own. :func:`geoopt_projunn.param_groups` makes it, and with
    ``steps`` it finds the angles.

    The exponential turns planes by exactly these angles, the other retractions by a little less. No
    plane turns further than :math:`\pi`. "spectral" turns planes with almost no gradient by less.
    If the tangent part of a direction is only rounding, nothing turns (the sketches "lsi" and
    "column" do not detect this). For k=None, k in the formula is n // 2, or n / 2 for complex x, or
    p if that is less, and the cost is :math:`O(n^3)`.

    References
    ----------
    Kiani et al., arXiv:2203.05483, Algorithm 1.
    Steps in radians are what Pethick et al., arXiv:2502.07529 (Scion), call linear minimization
    oracles, over balls of the Frobenius or the spectral norm in the tangent space. At full rank
    "spectral" is manifold Muon (Bernstein, *Modular manifolds*, Thinking Machines Lab,
    2025).
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
        momentum_space: str = "ambient",
        error_feedback: float | None = None,
        normalize: str | None = None,
        maximize: bool = False,
        skip_nonfinite: str = "manifold",
        foreach: bool | None = None,
        fused: bool | None = None,
        compile: bool = False,
        stabilize: int | None = None,
        **unsupported: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "momentum_space": momentum_space,
            "error_feedback": error_feedback,
            "normalize": normalize,
            "maximize": maximize,
            "skip_nonfinite": skip_nonfinite,
            "foreach": foreach,
            "fused": fused,
            "compile": compile,
        }
        super().__init__(params, defaults, stabilize, unsupported)

    @staticmethod
    def _state_of_others(group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _validate(self, group: dict[str, Any]) -> None:
        super()._validate(group)
        check_range("momentum", group["momentum"], 0.0)
        check_range("dampening", group["dampening"], -float("inf"))
        assert_flag("nesterov", group["nesterov"])
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError(
                "`nesterov` needs momentum > 0 and dampening = 0, got "
                f"momentum={group['momentum']}, dampening={group['dampening']}; set "
                "`momentum=0.9`, or leave `nesterov` out."
            )
        assert_known("momentum_space", group["momentum_space"], _MOMENTUM_BUFFERS)
        if group["error_feedback"] is not None:
            check_range("error_feedback", group["error_feedback"], 0.0, 1.0)
            if group["nesterov"] or group["dampening"] != 0:
                raise ValueError(
                    "`error_feedback` needs nesterov = False and dampening = 0, got "
                    f"nesterov={group['nesterov']}, dampening={group['dampening']}; leave "
                    "`error_feedback` at None to use them."
                )
            if group["momentum_space"] != "ambient":
                raise ValueError(
                    '`error_feedback` needs momentum_space = "ambient", because only '
                    "there what a step has left out is known, got "
                    f"{group['momentum_space']!r}; leave `error_feedback` at None to use it."
                )
            if group["normalize"] is not None:
                raise ValueError(
                    "`error_feedback` needs normalize = None, because a step in radians "
                    f"rescales its direction, got normalize={group['normalize']!r}; leave one of "
                    "them at None."
                )
