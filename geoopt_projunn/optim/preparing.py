"""Sort parameters, and check all that can go wrong, before anything changes."""

from collections.abc import Callable, Hashable, Mapping, Set
from functools import partial
from typing import Any, NamedTuple

import torch

from ..backends.choice import assert_serves
from ..backends.distributed import gives_values, is_dtensor, is_spread, receive_first
from ..backends.spec import Buffers, Rule
from ..low_rank_manifold import LowRankManifold
from .capture import check_has_begun
from .kinds import (
    Groups,
    Members,
    Parts,
    check_grad,
    check_is_point,
    check_kind,
    check_shapes,
    check_unit,
    is_low_rank,
    kind_of,
    low_rank_of,
    manifold_of,
    stacked,
)
from .messages import capitalized, described
from .nonfinite import States
from .others import check_plain
from .settled import Settled
from .spread import check_is_whole, check_spread, first_buffers
from .stabilizing import check_all, check_can_be_projected, is_due
from .state import first_state, probe
from .watch import Watch


class Prepared(NamedTuple):
    """What a step is about to do; nothing has changed yet."""

    parts: list[Parts]
    """By group."""
    fresh: dict[torch.Tensor, Buffers]
    """State that parameters still need."""
    begun: dict[torch.Tensor, bool]
    """Those at their first step, or the first one after a load; whether they are probed."""


class Preparation:
    """What an optimizer finds out about its parameters at the beginning of a step.

    Parameters
    ----------
    rule : Rule
        of steps on this package's manifolds
    takes_sparse : bool
        whether plain parameters may have sparse gradients
    watch : Watch
        is told of each parameter before its first step
    to_probe : set
        Parameters that have stepped and may have other values since: they are probed at their next
        step, as at the first.
    """

    def __init__(
        self, rule: Rule, takes_sparse: bool, watch: Watch, to_probe: set[torch.Tensor]
    ) -> None:
        self._rule = rule
        self._takes_sparse = takes_sparse
        self._watch = watch
        self._to_probe = to_probe
        # Each step has to check only what it has not seen before.
        self._checked: set[Hashable] = set()
        self.settled = Settled()
        """What processes have agreed on."""

    def sort(self, group: dict[str, Any], states: States, prepared: Prepared) -> None:
        """Sort the parameters of a group, check them, and add what is found."""
        part, fresh = Parts(), prepared.fresh
        names = self._rule.buffer_names(group)
        members, kind = Members([], [], []), None
        for p in group["params"]:
            manifold, grad, state = manifold_of(p), p.grad, states.get(p, {})
            if grad is not None and grad.is_sparse and not self._takes_sparse_of(p, group):
                raise TypeError(
                    f"`grad` of {described(p, group)} must be dense, got a sparse gradient; use "
                    "`sparse=False` in the layer that makes it."
                )
            if not is_low_rank(manifold):
                if grad is not None and "skipped" in state:
                    raise RuntimeError(
                        f"{capitalized(described(p, group))} was on LowRankUnitary or "
                        "LowRankStiefel and no longer is: a conversion or a load dropped its "
                        "manifold; make it a `geoopt.ManifoldParameter` again and make a new "
                        "optimizer."
                    )
                if grad is not None:
                    check_grad(p, grad, group)
                    if manifold is None:
                        check_plain(p, group)
                    else:
                        check_is_whole(p, manifold, group)
                        check_unit(p, manifold, group)
                (part.plain if manifold is None else part.riemannian).append(p)
            elif grad is not None:
                is_new = "skipped" not in state
                if is_new or (self._to_probe and p in self._to_probe):
                    prepared.begun[p] = self._check_new(p, manifold, group, state)
                if is_new:
                    state = fresh[p] = first_state(p, manifold, self._rule, group, state)
                kind, last = kind_of(p, grad, manifold, state, names), kind
                # To compare is faster than to look up, and many are like the one before.
                if kind != last:
                    members = part.low_rank.setdefault(kind, Members([], [], []))
                members.params.append(p)
                members.grads.append(grad)
                members.states.append(state)
        for of_kind, (params, grads, of_params) in part.low_rank.items():
            p, state = params[0], of_params[0]
            if of_kind not in self._checked:
                check_kind(p, state, names, group)
                self._checked.add(of_kind)
            assert_serves(p)
            if is_spread(p) or is_dtensor(grads[0]):
                for p, own in zip(params, of_params, strict=True):
                    check_spread(p, own, self._rule, group)
            if missing := [name for name in names if name not in state]:
                for number, p in enumerate(params):
                    begun = self._begun_anew(p, group, of_params[number], missing)
                    fresh[p] = of_params[number] = begun
        prepared.parts.append(part)

    def check_points(self, groups: Groups, begun: Mapping[torch.Tensor, bool]) -> None:
        """Check values, of which processes exchange numbers: all of them have to come here."""
        checks: list[Callable[[], None]] = []
        for group in groups if begun else ():
            for p in group["params"]:
                if begun.get(p, False) and gives_values(p):
                    checks.append(partial(probe, p, low_rank_of(p), group))
        for group in filter(is_due, groups):
            checks += [partial(check_can_be_projected, p, group) for p in group["params"]]
        check_all(checks)

    def forget_all_but(self, params: Set[torch.Tensor]) -> None:
        """Forget parameters that are not among these."""
        self._to_probe &= params
        self.settled.forget_all_but(params)

    def begin(self, prepared: Prepared, states: States) -> None:
        """Give parameters the state that they still need, and note those at their first step.

        Of the latter all processes now get the values.
        """
        parts, fresh, begun = prepared
        if begun:
            receive_first(begun)
        for p, is_probed in begun.items():
            self._watch.begin(p, states.get(p, {}).get("skipped"))
            (self._to_probe.discard if is_probed else self._to_probe.add)(p)
        for p, buffers in fresh.items():
            state = states[p]
            # What another choice of options has left would be out of date if it came into use.
            for name in self._rule.known_buffers - buffers.keys():
                state.pop(name, None)
            state.update(buffers)
        for part in parts if fresh else ():
            for members in part.low_rank.values():
                members.states[:] = [states[p] for p in members.params]

    def _check_new(
        self,
        p: torch.Tensor,
        manifold: LowRankManifold,
        group: dict[str, Any],
        state: Mapping[str, Any],
    ) -> bool:
        """Check a parameter before its first step; return whether it is to be probed."""
        check_has_begun(p, group)
        check_is_point(p, manifold, group)
        if is_spread(p):
            check_spread(p, {}, self._rule, group)
        if "skipped" in state:
            check_shapes(p, state, self._rule.buffer_names(group), group)
        # Before they load, distributed checkpoints take a step of length 0 from any values.
        return p.is_meta or float(group["lr"]) != 0

    def _begun_anew(
        self, p: torch.Tensor, group: dict[str, Any], state: Buffers, missing: list[str]
    ) -> Buffers:
        """Return the state of a parameter whose group asks for buffers that it has not.

        Buffers that begin at zero want the bias correction of a first step, and so a whole state
        that begins. Only AMSGrad's largest moments may begin later.
        """
        if all(name.startswith("max_") for name in missing):
            return {**first_buffers(stacked(p), self._rule, group), **state}
        begun = first_state(p, low_rank_of(p), self._rule, group, {})
        return {**begun, "skipped": state["skipped"]}

    def _takes_sparse_of(self, p: torch.Tensor, group: dict[str, Any]) -> bool:
        return self._takes_sparse and manifold_of(p) is None and group["weight_decay"] == 0
