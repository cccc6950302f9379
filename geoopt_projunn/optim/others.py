"""Let torch and geoopt step the parameters that are not on LowRankUnitary."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import _device_dtype_check_for_fused

from .delegate import Delegate
from .kinds import Parts, manifold_of
from .messages import described
from .nonfinite import COUNTER, State, count_skipped
from .options import on_device

Groups = list[dict[str, Any]]


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
        self._plain.check({name: _as_torch_checks(value) for name, value in options.items()})

    def step(self, state: State, groups: Groups, parts: list[Parts]) -> None:
        """Step them, group by group."""
        pairs = list(zip(groups, parts, strict=True))
        stepped = [(p, group) for group, part in pairs for p in part.others()]
        if not stepped:
            return
        with _counters_aside(state, stepped):
            self._plain.step(state, [_for(group, part.plain) for group, part in pairs])
            riemannian = [_for(group, part.riemannian) for group, part in pairs]
            with _own_gradients(riemannian):
                for group in riemannian:
                    if group.get("decoupled_weight_decay", False):
                        _decay(group)
                self._riemannian.step(state, riemannian)

    def stabilize(self, state: State, group: dict[str, Any], params: list[torch.Tensor]) -> None:
        """Project parameters on geoopt's manifolds, and what is remembered of them."""
        self._riemannian.stabilize(state, [{**group, "params": params}])


def _as_torch_checks(value: Any) -> Any:
    """Return an option as torch's constructors may see it, whose values are checked already."""
    if isinstance(value, tuple | list):
        # torch refuses betas that are integers, and steps by them all the same.
        return tuple(_as_torch_checks(float(v) if isinstance(v, int) else v) for v in value)
    # To read a value would wait for its device; NaN, which torch refuses, skips steps.
    return torch.tensor(0.5) if isinstance(value, torch.Tensor) else value


def check_plain(p: torch.Tensor, group: dict[str, Any]) -> None:
    """Raise the errors that torch would raise when others have moved already."""
    if group["fused"]:
        _device_dtype_check_for_fused(p)
    if group.get("capturable", False) and p.device.type == "cpu":
        raise ValueError(
            f"`capturable` needs plain parameters on a GPU, got {described(p, group)} on the CPU; "
            "put it into a group with `capturable=False`."
        )


def _for(group: dict[str, Any], params: list[torch.Tensor]) -> dict[str, Any]:
    """Return the group of some of its parameters, its numbers where and as these want them."""
    # The group's owner stabilizes.
    own = {"step": 0, **group, "params": params, "stabilize": None, "differentiable": False}
    if params:
        own["lr"] = on_device(group["lr"], params[0].device)
        if "betas" in group:
            own["betas"] = tuple(on_device(beta, params[0].device) for beta in group["betas"])
    return own


@contextmanager
def _counters_aside(
    state: State, stepped: list[tuple[torch.Tensor, dict[str, Any]]]
) -> Iterator[None]:
    """Take our counters out of the state, whose emptiness tells torch and geoopt of a first step.

    Afterwards every parameter has a state, which distributed checkpoints ask for: torch's plain
    SGD makes none.
    """
    counters = {p: state[p].pop(COUNTER) for p, _ in stepped if COUNTER in state[p]}
    try:
        yield
    finally:
        for p, group in stepped:
            if p in counters:
                state[p][COUNTER] = counters[p]
            elif not state[p] or group["skip_nonfinite"] == "all":
                count_skipped(state[p], p, 0)


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


def _decay(group: dict[str, Any]) -> None:
    """Move points against the Riemannian gradient of half their squared norm, apart from Adam."""
    for p in group["params"]:
        if p.grad is not None and group["weight_decay"] != 0:
            manifold = manifold_of(p)
            assert manifold is not None
            length = -on_device(group["lr"], p.device) * group["weight_decay"]
            p.copy_(manifold.retr(p, length * manifold.egrad2rgrad(p, p.detach().clone())))
    group["weight_decay"] = 0.0
