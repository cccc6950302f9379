"""Let torch and geoopt step the parameters that are not on this package's manifolds."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..arguments import NUMBERS, ROUNDING
from .delegate import Delegate
from .kinds import Groups, Parts, manifold_of
from .messages import described
from .nonfinite import States, count_skipped
from .options import is_zero, on_device


class Others:
    """The optimizers that define the steps of plain parameters and of geoopt's manifolds.

    Parameters
    ----------
    plain, riemannian : type
        the classes, of torch and of geoopt
    """

    def __init__(
        self, plain: type[torch.optim.Optimizer], riemannian: type[torch.optim.Optimizer]
    ) -> None:
        self._plain = Delegate(plain)
        self._riemannian = Delegate(riemannian)

    def check(self, options: dict[str, Any]) -> None:
        """Let torch refuse options that it does not take."""
        self._plain.check({name: _placeholder(value) for name, value in options.items()})

    def step(
        self,
        states: States,
        groups: Groups,
        parts: list[Parts],
        needed: Callable[[dict[str, Any]], Iterable[str]],
    ) -> None:
        """Step them, group by group; ``needed`` is that of :class:`.nonfinite.AllOrNothing`."""
        pairs = list(zip(groups, parts, strict=True))
        stepped = [(p, group) for group, part in pairs for p in part.others()]
        if not stepped:
            return
        for p, group in stepped:
            _add_amsgrad(states[p], group)
        with _without_foreign_entries(states, stepped, needed):
            self._plain.step(states, [_group_of(part.plain, group) for group, part in pairs])
            riemannian = [_group_of(part.riemannian, group) for group, part in pairs]
            with _own_gradients(riemannian), _same_points(riemannian):
                for group in riemannian:
                    if group.get("decoupled_weight_decay", False):
                        _decay(group)
                self._riemannian.step(states, riemannian)
        for p, group in stepped:
            # Distributed checkpoints want a state of every parameter; torch's plain SGD keeps none.
            if not states[p] or group["skip_nonfinite"] == "all":
                count_skipped(states[p], p, 0)

    def stabilize(self, states: States, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        """Project points on geoopt's manifolds, and their momentum on the tangent spaces."""
        self._riemannian.stabilize(states, [{**group, "params": params}])


def check_plain(p: torch.Tensor, group: dict[str, Any]) -> None:
    """Raise what torch would raise later, when other parameters have moved already."""
    capturable = group.get("capturable", False)
    if group["fused"]:
        # A private name of torch, which only this rare option needs.
        from torch.optim.optimizer import _device_dtype_check_for_fused

        _device_dtype_check_for_fused(p)
        if p.grad is not None and p.grad.is_sparse:
            raise TypeError(
                f"`grad` of {described(p, group)} must be dense with `fused=True`, got a sparse "
                "gradient; use `fused=False` in its group."
            )
    if capturable and p.is_cpu:
        raise ValueError(
            f"`capturable` needs plain parameters on a GPU, got {described(p, group)} on the CPU; "
            "put it into a group with `capturable=False`."
        )
    tensors = [v for v in (group["lr"], *group.get("betas", ())) if isinstance(v, torch.Tensor)]
    if tensors and group["foreach"] and "betas" in group and not capturable:
        raise ValueError(
            "`lr` and `betas` must be numbers with `foreach=True`, unless `capturable=True`, got "
            f"a tensor for {described(p, group)}; use `foreach=None`."
        )


def _placeholder(value: Any) -> Any:
    """Return what torch's constructors may check: values were checked before, without reading.

    They refuse NaN, which only skips steps, betas that are not floats, and rates below zero by
    rounding.
    """
    if isinstance(value, tuple | list):
        return tuple(map(_placeholder, map(_as_float, value)))
    if isinstance(value, float) and -ROUNDING <= value < 0:
        return 0.0
    return torch.tensor(0.5, device="cpu") if isinstance(value, torch.Tensor) else value


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, NUMBERS) else value


def _group_of(params: list[torch.Tensor], group: dict[str, Any]) -> dict[str, Any]:
    """Return a group of some parameters with the options of another, on their device."""
    # When to stabilize is decided by the optimizer that owns the group.
    own = {"step": 0, **group, "params": params, "stabilize": None, "differentiable": False}
    if not params:
        return own
    device = params[0].device
    for name, value in group.items():
        if isinstance(value, torch.Tensor) and value.numel() == 1:
            own[name] = on_device(value, device)
    if "betas" in group:
        own["betas"] = tuple(on_device(beta, device) for beta in group["betas"])
    if group["skip_nonfinite"] == "all" and not any(p.is_cpu for p in params):
        # Else torch's Adam would read the number of steps, and wait.
        own["capturable"] = True
    return own


def _add_amsgrad(state: dict[str, Any], group: dict[str, Any]) -> None:
    """Add what AMSGrad keeps to a state that was begun without it."""
    if group.get("amsgrad", False) and "exp_avg_sq" in state and "max_exp_avg_sq" not in state:
        state["max_exp_avg_sq"] = torch.zeros_like(state["exp_avg_sq"])


@contextmanager
def _without_foreign_entries(
    states: States,
    stepped: list[tuple[torch.Tensor, dict[str, Any]]],
    needed: Callable[[dict[str, Any]], Iterable[str]],
) -> Iterator[None]:
    """Hide a state from torch and geoopt that lacks what they need: they begin it if it is empty.

    What others keep there, and our counters, come back afterwards.
    """
    hidden: dict[torch.Tensor, dict[str, Any]] = {}
    for p, group in stepped:
        state = states[p]
        if any(state.get(name) is None for name in needed(group)):
            hidden[p] = {name: value for name, value in state.items() if value is not None}
            state.clear()
    try:
        yield
    finally:
        for p, entries in hidden.items():
            states[p].update({k: v for k, v in entries.items() if k not in states[p]})


@contextmanager
def _own_gradients(groups: Groups) -> Iterator[None]:
    """Give geoopt copies: it adds weight decay to the gradients, and knows no `maximize`."""
    grads = {p: p.grad for group in groups for p in group["params"] if p.grad is not None}
    try:
        for group in groups:
            for p in grads.keys() & group["params"]:
                p.grad = -p.grad if group["maximize"] else p.grad.clone()
        yield
    finally:
        for p, grad in grads.items():
            p.grad = grad


@contextmanager
def _same_points(groups: Groups) -> Iterator[None]:
    """Put points back whose learning rate is zero: geoopt's retractions round them."""
    still = [p for group in groups if is_zero(group["lr"]) for p in group["params"]]
    before = [p.detach().clone() for p in still]
    try:
        yield
    finally:
        for p, point in zip(still, before, strict=True):
            p.copy_(point)


def _decay(group: dict[str, Any]) -> None:
    """Move points against the Riemannian gradient of half their squared norm, apart from Adam."""
    for p in group["params"]:
        if p.grad is not None and group["weight_decay"] != 0:
            manifold = manifold_of(p)
            assert manifold is not None
            length = -on_device(group["lr"], p.device) * group["weight_decay"]
            p.copy_(manifold.retr(p, length * manifold.egrad2rgrad(p, p.detach().clone())))
    group["weight_decay"] = 0.0
