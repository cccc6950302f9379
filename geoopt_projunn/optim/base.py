"""The step loop that both optimizers share."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from geoopt.manifolds.base import Manifold
from geoopt.optim.mixin import OptimMixin

from ..linalg.precision import full_precision
from ..manifold import LowRankUnitary
from .delegate import Delegate
from .kinds import Parts, check_kind, holds_low_rank, kind_of, manifold_of
from .rank_k import first_state, step_kinds
from .rules import Buffers, UpdateRule

_GROUP_KEYS = ("params", "param_names", "name", "stabilize", "step", "initial_lr")


# Else torch asks a subclass of Tensor, at every attribute, whether it overrides it. A
# ManifoldParameter does not, and of small matrices that is a tenth of a step.
_as_tensors = torch._C.DisableTorchFunctionSubclass


class ProjUNNOptimizer(OptimMixin, torch.optim.Optimizer):
    """Step parameters on LowRankUnitary by a rule, the others by torch or geoopt.

    A subclass names the rule and the two optimizers whose steps the other parameters take.
    """

    _rule: ClassVar[UpdateRule]
    _plain: ClassVar[type[torch.optim.Optimizer]]
    _riemannian: ClassVar[type[torch.optim.Optimizer]]
    _takes_sparse: ClassVar[bool]

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        stabilize: int | None,
        unsupported: dict[str, Any],
    ) -> None:
        if unsupported:
            name = next(iter(unsupported))
            raise TypeError(
                f"{type(self).__name__} does not support `{name}`; remove it. "
                f"Supported are {', '.join((*defaults, 'stabilize'))}."
            )
        self._checked_for_manifold = False
        super().__init__(params, defaults, stabilize=stabilize)  # type: ignore[call-arg]

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_checked_for_manifold", False)
        self.__dict__.setdefault("_stabilize", None)
        # A checkpoint of another optimizer, or an older one, may lack some options. torch adds
        # "differentiable" to the defaults here, which is no option of ours.
        self.defaults.setdefault("compile", False)
        options = {**self.defaults, "stabilize": self._stabilize}
        options.pop("differentiable", None)
        for group in self.param_groups:
            for name, value in options.items():
                group.setdefault(name, value)
        # torch leaves what is called "step" where a checkpoint had it.
        for p, values in self.state.items():
            if "skipped" in values:
                values["step"] = values["step"].to(p.device)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stabilize": self._stabilize}

    def _validate(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a hyperparameter out of range; subclasses add theirs."""
        for name in ("lr", "weight_decay"):
            check_range(name, group[name], 0.0)
        if not isinstance(group["compile"], bool):
            raise ValueError(f"`compile` must be True or False, got {group['compile']!r}.")
        every = group["stabilize"]
        if every is not None and (
            isinstance(every, bool) or not isinstance(every, int) or every < 1
        ):
            raise ValueError(f"`stabilize` must be None or a positive integer, got {every!r}.")

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, after checking its hyperparameters."""
        known = {*self.defaults, *_GROUP_KEYS}
        unknown = [] if not isinstance(param_group, dict) else sorted(param_group.keys() - known)
        if unknown:
            raise ValueError(
                f"{type(self).__name__} does not support `{unknown[0]}`; remove it from the group. "
                f"Supported are {', '.join((*self.defaults, 'stabilize'))}."
            )
        self._validate({"stabilize": self._stabilize, **self.defaults, **param_group})
        super().add_param_group(param_group)

    @property
    def skipped_steps(self) -> int:
        """How many steps of how many matrices were left out for not being finite.

        Reading it waits for the device.
        """
        return sum(
            int(state["skipped"].sum()) for state in self.state.values() if "skipped" in state
        )

    # Under torch.compile geoopt's optimizers would take Euclidean steps without a word.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Reevaluates the model, with gradients enabled, and returns the loss.

        Returns
        -------
        What the closure returned, None without one.

        Raises
        ------
        ValueError
            If a parameter on LowRankUnitary is off the manifold before its first step.
        TypeError
            If a gradient is sparse where it must not be, or a dtype is unsupported.
        RuntimeError
            If a parameter has lost its LowRankUnitary manifold since the last step.
            After any of these, parameters and state are as they were.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._step_all(self._prepare())
        return loss

    @full_precision
    def _step_all(self, parts: list[Parts]) -> None:
        plain: list[dict[str, Any]] = []
        riemannian: list[dict[str, Any]] = []
        for group, part in zip(self.param_groups, parts, strict=True):
            with _as_tensors():
                step_kinds(part.low_rank.values(), self.state, self._rule, group)
            riemannian.append({"step": 0, **group, "params": part.riemannian})
            plain.append({**group, "params": part.plain})
        self._delegate(self._plain).step(self.state, plain)
        self._step_riemannian(riemannian)
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            if group["stabilize"] is not None and group["step"] % group["stabilize"] == 0:
                self._stabilize_low_rank(group)

    def _step_riemannian(self, groups: list[dict[str, Any]]) -> None:
        # geoopt adds weight decay and momentum to the gradients themselves, and knows no
        # `maximize`: give it copies.
        grads = {p: p.grad for group in groups for p in group["params"] if p.grad is not None}
        try:
            for group in groups:
                for p in grads.keys() & group["params"]:
                    p.grad = -p.grad if group["maximize"] else p.grad.clone()
            self._delegate(self._riemannian).step(self.state, groups)
        finally:
            for p, grad in grads.items():
                p.grad = grad

    @full_precision
    def _prepare(self) -> list[Parts]:
        """Sort the parameters and check all that can go wrong, before anything changes."""
        fresh: dict[torch.Tensor, Buffers] = {}
        parts = []
        for group in self.param_groups:
            self._validate(group)
            with _as_tensors():
                parts.append(self._sort(group, fresh))
        params = (p for group in self.param_groups for p in group["params"])
        if not self._checked_for_manifold and not any(map(holds_low_rank, params)):
            warnings.warn(
                f"No parameter of this {type(self).__name__} is on LowRankUnitary. If one should "
                "be, a conversion or a load dropped its manifold: make it a "
                "`geoopt.ManifoldParameter` again.",
                # The decorators of _prepare and step, and torch's hooks around it.
                stacklevel=7,
            )
        self._checked_for_manifold = True
        for p, buffers in fresh.items():
            self.state[p].update(buffers)
        return parts

    def _sort(self, group: dict[str, Any], fresh: dict[torch.Tensor, Buffers]) -> Parts:
        """Sort the parameters of a group; put the state that they still need into ``fresh``."""
        part = Parts()
        for p in group["params"]:
            manifold, grad, state = manifold_of(p), p.grad, self.state.get(p, {})
            if grad is not None and grad.is_sparse:
                self._check_sparse(p, manifold, group)
            if not isinstance(manifold, LowRankUnitary):
                if grad is not None and "skipped" in state:
                    raise RuntimeError(
                        f"A parameter of shape {tuple(p.shape)} was on LowRankUnitary and no "
                        "longer is: a conversion or a load dropped its manifold; make it a "
                        "`geoopt.ManifoldParameter` again and rebuild the optimizer."
                    )
                (part.plain if manifold is None else part.riemannian).append(p)
            elif grad is not None:
                if "skipped" not in state:
                    state = fresh[p] = first_state(p, manifold, self._rule, group)
                kind = kind_of(p, grad, manifold, state)
                part.low_rank.setdefault(kind, []).append(p)
        for members in part.low_rank.values():
            p = members[0]
            state = fresh.get(p) or self.state[p]
            check_kind(p, state)
            if not all(name in state for name in self._rule.buffer_names(group)):
                for p in members:
                    fresh[p] = {**self._rule.first_buffers(p.detach(), group), **self.state[p]}
        return part

    def _check_sparse(
        self, p: torch.Tensor, manifold: Manifold | None, group: dict[str, Any]
    ) -> None:
        if not (self._takes_sparse and manifold is None and group["weight_decay"] == 0):
            raise TypeError(
                f"`grad` of a parameter of shape {tuple(p.shape)} must be dense, got a sparse "
                "gradient; use `sparse=False` in the layer that makes it."
            )

    def _delegate(self, kind: type[torch.optim.Optimizer]) -> Delegate:
        delegates: dict[type, Delegate] = self.__dict__.setdefault("_delegates", {})
        return delegates.setdefault(kind, Delegate(kind))

    def stabilize_group(self, group: dict[str, Any]) -> None:
        """Project the parameters of a group on their manifolds, with geoopt's buffers."""
        self._stabilize_low_rank(group)
        manifolds = [(p, manifold_of(p)) for p in group["params"]]
        others = [p for p, m in manifolds if not (m is None or isinstance(m, LowRankUnitary))]
        self._delegate(self._riemannian).stabilize(self.state, [{**group, "params": others}])

    @torch.no_grad()
    def _stabilize_low_rank(self, group: dict[str, Any]) -> None:
        for p in group["params"]:
            if isinstance(manifold := manifold_of(p), LowRankUnitary):
                p.copy_(manifold.projx(p))


def check_range(name: str, value: Any, low: float, high: float = float("inf")) -> None:
    """Raise an error unless low <= value < high; the value of a tensor is not read."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"`{name}` must be one number, got a tensor of {value.numel()}.")
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"`{name}` must be a number, got {value!r}.")
    if not low <= value or not (value < high or value == low):
        raise ValueError(f"`{name}` must lie in [{low}, {high}), got {value}.")
