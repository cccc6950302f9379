"""The step loop that both optimizers share."""

import functools
import inspect
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from geoopt.optim.mixin import OptimMixin

from ..arguments import assert_flag, assert_known, check_range
from ..backends.spec import Rule
from ..linalg.precision import full_precision
from ..normalization import NORMALIZATIONS
from .agreement import Agreement, Rates
from .capture import check_captured
from .lost import LostManifolds
from .messages import described
from .nonfinite import SKIP_NONFINITE, AllOrNothing
from .options import check_have_values, checked_stabilize, warn_of_misspelt
from .others import Others
from .preparing import Preparation, Prepared
from .printing import printed
from .rank_k import step_kinds
from .skips import skipped_by_parameter, total_skipped
from .spread import average_buffers
from .stabilizing import is_due, project_, stabilize_
from .state import mend_loaded_state
from .watch import Watch

# Else torch asks a subclass of Tensor, at every attribute, whether it overrides it. A
# ManifoldParameter does not, and of small matrices that is a tenth of a step. A private name:
# without it steps are only slower.
_as_tensors = getattr(torch._C, "DisableTorchFunctionSubclass", nullcontext)


class ProjUNNOptimizer(OptimMixin, torch.optim.Optimizer):
    """Step parameters on this package's manifolds by a rule, the others by torch or geoopt.

    A subclass names the rule, the two optimizers whose steps the other parameters take, and what
    the state of those has after a step.
    """

    _rule: ClassVar[Rule]
    _plain: ClassVar[type[torch.optim.Optimizer]]
    _riemannian: ClassVar[type[torch.optim.Optimizer]]
    _takes_sparse: ClassVar[bool]

    @staticmethod
    def _state_of_others(group: dict[str, Any]) -> tuple[str, ...]:
        raise NotImplementedError

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
        self._start_again()
        super().__init__(params, defaults, stabilize=checked_stabilize(stabilize))  # type: ignore[call-arg]

    def _start_again(self) -> None:
        """Probe all points at their next step, as at the first, and warn anew."""
        groups = self.__dict__.get("param_groups", ())
        to_probe = {p for group in groups for p in group["params"] if p in self.state}
        self._lost = LostManifolds()
        self._watch = Watch()
        self._preparation = Preparation(self._rule, self._takes_sparse, self._watch, to_probe)

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            for p in group["params"]:
                mend_loaded_state(state["state"].get(p, {}), p, group, self._rule)
        super().__setstate__(state)
        self._start_again()
        self.__dict__.setdefault("_stabilize", None)
        # A checkpoint of another optimizer, or of an older version, may lack some options.
        self.defaults = {**self._own_defaults(), **self.defaults, "stabilize": self._stabilize}
        for name in ("stabilize", "differentiable"):  # the latter is torch's addition
            self.defaults.pop(name, None)
        for group in self.param_groups:
            for name, value in {**self.defaults, "stabilize": self._stabilize}.items():
                group.setdefault(name, value)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_stabilize": self._stabilize}

    @classmethod
    def _own_defaults(cls) -> dict[str, Any]:
        # A subclass may pass on what it does not name.
        return {
            name: parameter.default
            for kind in reversed(cls.__mro__)
            if issubclass(kind, ProjUNNOptimizer)
            for name, parameter in inspect.signature(kind).parameters.items()
            if parameter.default is not parameter.empty
        }

    def __repr__(self) -> str:
        return printed(type(self).__name__, self.param_groups, self._own_defaults())

    def _validate(self, group: dict[str, Any]) -> None:
        """Raise ValueError for a hyperparameter out of range; subclasses add theirs."""
        for name in ("lr", "weight_decay"):
            check_range(name, group[name], 0.0)
        for name in ("maximize", "compile"):
            assert_flag(name, group[name])
        for name in ("foreach", "fused"):
            assert_flag(name, group[name], may_be_none=True)
        assert_known("normalize", group["normalize"], (None, *NORMALIZATIONS))
        assert_known("skip_nonfinite", group["skip_nonfinite"], SKIP_NONFINITE)
        checked_stabilize(group["stabilize"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, after checking its hyperparameters.

        Unknown keys are kept, because schedules and wrappers use them. A key that looks like a
        misspelt option causes a warning.
        """
        if isinstance(param_group, dict):
            options = {"stabilize": self._stabilize, **self.defaults, **param_group}
            if options.pop("differentiable", False):
                name = type(self).__name__
                raise ValueError(f"{name} does not support `differentiable`; remove it.")
            self._validate(options)
            self._others.check(options)
            warn_of_misspelt(param_group, {*self.defaults, "stabilize"})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["stabilize"] = checked_stabilize(group["stabilize"])

    def state_dict(self) -> dict[str, Any]:
        """Return the state, as torch does.

        Buffers of parameters that :func:`geoopt_projunn.distributed.sketch_gradients_` has marked
        are averaged first: every process has to call this.

        Raises
        ------
        RuntimeError
            If processes have states of different such parameters.
        """
        average_buffers(self.param_groups, self.state, self._rule)
        return super().state_dict()

    @property
    def skipped_steps(self) -> int:
        """How many steps were skipped because something was not finite; reading it waits.

        Each matrix on this package's manifolds counts on its own. If there is none, it is how many
        steps were skipped because of ``skip_nonfinite="all"``.
        """
        return total_skipped(self.param_groups, self.state)

    def skipped_steps_by_parameter(self) -> dict[str | int, int]:
        """Return how many steps each parameter has skipped; this waits for the device.

        Keys are the parameters' names if the optimizer was made of ``module.named_parameters()``
        and no name occurs twice, else their numbers in ``state_dict()``. Of a batch of matrices
        each counts on its own. Parameters on none of this package's manifolds skip steps only with
        ``skip_nonfinite="all"``.
        """
        return skipped_by_parameter(self.param_groups, self.state)

    # Under torch.compile geoopt's optimizers would take Euclidean steps without a word.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step with every parameter that has a gradient.

        Parameters
        ----------
        closure : callable, optional
            Reevaluates the model, with gradients enabled, and returns the loss.

        Returns
        -------
        Any
            what the closure returned, None without one

        Raises
        ------
        ValueError
            If a parameter on one of this package's manifolds is off it at its first step or after
            ``load_state_dict``, or a hyperparameter has become unsuitable.
        TypeError
            If a gradient is sparse where it must not be, a dtype is unsupported, or a parameter on
            one of these manifolds was sharded or flattened.
        RuntimeError
            If a parameter has lost its manifold since the last step, or processes do not agree on
            the parameters that they share, at their first step, or average the gradients of.

        Warns
        -----
        UserWarning
            If a plain parameter is orthogonal to rounding, at its first step; if a point is far
            off its manifold, which is measured every 50 steps; at the first step that is skipped
            because something is not finite. Of parameters on a GPU the warning comes up to 100
            steps later, so that the host need not wait; a CUDA graph that is replayed gives none.
            Also if steps in radians are so long that a plane may have to stop at half a turn.

        Notes
        -----
        After an exception of this package parameters and state are as they were. After one of torch
        or geoopt in a step of other parameters, such as a plain one that was resized, parameters
        before it have moved, and those on LowRankUnitary and LowRankStiefel have not.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Half the time of torch.no_grad().
        with torch.set_grad_enabled(False):
            self._take_step()
        return loss

    @full_precision
    def _take_step(self) -> None:
        prepared, rates = self._prepare()
        parts, begun = prepared.parts, prepared.begun
        step = AllOrNothing(self.param_groups, parts, self.state, self._state_of_others)
        # Warnings, which may be errors to the user, come before anything moves.
        self._watch.see_gradients(step.finite, self._described)
        for group, part in zip(self.param_groups, parts, strict=True):
            self._watch.see_angles(part.low_rank_parameters(), group, self._described)
        unsure = []
        with step.context():
            # These first: torch may raise an error that was not foreseen.
            self._others.step(self.state, self.param_groups, parts, self._state_of_others)
            self._preparation.begin(prepared, self.state)
            for group, part in zip(self.param_groups, parts, strict=True):
                with _as_tensors():
                    unsure += step_kinds(part.low_rank.values(), self._rule, group, rates, begun)
                self._stabilize_in_turn(group, skips=step.skips)
        if self._watch.see_step(unsure, self.state, self._described):
            self._forget()

    def _forget(self) -> None:
        """Forget parameters that have left the optimizer, so that they can be freed."""
        params = {p for group in self.param_groups for p in group["params"]} | self.state.keys()
        for one in (self._lost, self._watch, self._preparation):
            one.forget_all_but(params)

    def _stabilize_in_turn(self, group: dict[str, Any], *, skips: bool) -> None:
        due = is_due(group) and not (skips and group["skip_nonfinite"] == "all")
        group["step"] = group.get("step", 0) + 1
        if due:
            project_(group, self.state, self._others)

    def _described(self, p: torch.Tensor) -> str:
        groups = (group for group in self.param_groups if any(q is p for q in group["params"]))
        return described(p, next(groups, {"params": []}))

    def _prepare(self) -> tuple[Prepared, Rates]:
        """Sort the parameters and check all that can go wrong; nothing changes yet."""
        agreement = Agreement(self.param_groups, self._preparation.settled)
        try:
            prepared = parts, _, begun = self._sort()
            agreement.on_parts(type(self).__name__, parts, begun)
            self._preparation.check_points(self.param_groups, begun)
        except Exception as error:
            agreement.fail(error)
            raise
        return prepared, agreement.on_steps(parts, begun)

    def _sort(self) -> Prepared:
        prepared = Prepared([], {}, {})
        for group in self.param_groups:
            self._validate(group)
            check_have_values(group)
            with _as_tensors():
                self._preparation.sort(group, self.state, prepared)
        parts, fresh, _ = prepared
        check_captured(self.param_groups, parts, self.state, fresh, self._state_of_others)
        self._lost.look(self.param_groups, parts)
        return prepared

    @functools.cached_property
    def _others(self) -> Others:
        return Others(self._plain, self._riemannian)

    def stabilize_group(self, group: dict[str, Any]) -> None:
        """Project the parameters of a group on their manifolds, with geoopt's buffers."""
        stabilize_([group], self.state, self._others)

    def stabilize(self) -> None:
        """Do the same for all groups, or for none: an error comes before anything moves."""
        stabilize_(self.param_groups, self.state, self._others)
