"""Let another optimizer step some of the parameters."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Delegate:
    """An optimizer of another class that works on this one's state and groups.

    Parameters that are on none of our manifolds are stepped by the libraries that define their
    steps, torch and geoopt, and not by a copy of them.

    Parameters
    ----------
    kind : type
        The optimizer class; it is given the keys of a group that it knows.
    """

    def __init__(self, kind: type[torch.optim.Optimizer]) -> None:
        self._kind = kind
        self._optimizer: torch.optim.Optimizer | None = None

    def check(self, options: dict[str, Any]) -> None:
        """Raise what the optimizer raises when it is made with these options."""
        known = inspect.signature(self._kind).parameters.keys() & options.keys() - {"params"}
        placeholder = torch.zeros(1, requires_grad=True, device="cpu")
        self._kind([placeholder], **{key: options[key] for key in known})

    def step(self, state: Any, groups: list[dict[str, Any]]) -> None:
        """Step the parameters of ``groups``, reading and writing ``state``."""
        with self._over(state, groups) as optimizer:
            if optimizer is not None:
                # The step without torch's hooks, which are for the optimizer the user made.
                step = type(optimizer).step
                getattr(step, "__wrapped__", step)(optimizer)

    def stabilize(self, state: Any, groups: list[dict[str, Any]]) -> None:
        """Project the parameters of ``groups`` on their manifolds."""
        with self._over(state, groups) as optimizer:
            if optimizer is not None:
                optimizer.stabilize()  # type: ignore[attr-defined]

    @contextmanager
    def _over(
        self, state: Any, groups: list[dict[str, Any]]
    ) -> Iterator[torch.optim.Optimizer | None]:
        groups = [group for group in groups if group["params"]]
        if not groups:
            yield None
            return
        if self._optimizer is None:
            self._optimizer = self._kind(groups[0]["params"], lr=0.0)  # type: ignore[call-arg]
            # Nobody but torch calls it unwise to take first steps outside of a CUDA graph.
            vars(self._optimizer)["_warned_capturable_if_run_uncaptured"] = True
        optimizer = self._optimizer
        known = {*optimizer.defaults, "params", "step", "stabilize"}
        optimizer.state = state
        optimizer.param_groups = [
            {**optimizer.defaults, **{key: group[key] for key in known & group.keys()}}
            for group in groups
        ]
        try:
            yield optimizer
        finally:
            # It must not keep parameters that leave the user's.
            optimizer.param_groups = []
