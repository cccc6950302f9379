"""What an optimizer tells its user while it runs, without waiting for a GPU."""

import math
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, NamedTuple

import torch

from ..backends.distributed import averages_gradients, is_dtensor, local_of
from ..linalg.modes import is_capturing
from ..normalization import furthest
from ..warning import warn
from . import waiting
from .kinds import Members, is_low_rank, low_rank_of, manifold_of
from .messages import capitalized
from .state import worst_errors

# A GPU's answer is read when later steps are taken: within 100 steps.
_EVERY = 50
# ‖xᴴx − I‖ / ‖I‖. Rounding stays far below.
_FAR_OFF = 1e-3

Described = Callable[[torch.Tensor], str]
Warner = Callable[[torch.Tensor, float, Described], None]


class Watch:
    """Measure points and read counters now and then, and warn.

    It warns of a point that is far off its manifold, once, and again if it was back in between; of
    the first step that was skipped because something was not finite; and of steps in radians that
    may be shortened.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._warned_of_skip = False
        self._warned_of_angle = False
        self._far_off: set[torch.Tensor] = set()
        self._skips_before: dict[torch.Tensor, float] = {}
        self._nonfinite: dict[torch.Tensor, torch.Tensor] = {}
        self._pending: list[_Reading] = []

    def begin(self, p: torch.Tensor, skipped: torch.Tensor | None) -> None:
        """Start to watch a parameter that has skipped some steps already; waits for its device."""
        counts = None if skipped is None or p.is_meta else local_of(skipped)
        self._skips_before[p] = 0.0 if counts is None else float(counts.sum())

    def see_gradients(
        self, finite: Mapping[torch.Tensor, torch.Tensor], described: Described
    ) -> None:
        """Take note of gradients that make whole groups skip a step, before it is taken."""
        if not finite or self._warned_of_skip or is_capturing():
            return
        for p, flag in finite.items():
            if waiting.reads_at_once(p):
                self._warn_of_gradient(p, not flag, described)
            else:
                before = self._nonfinite.get(p)
                self._nonfinite[p] = ~flag if before is None else ~flag | before

    def see_angles(
        self, params: Iterable[torch.Tensor], group: Mapping[str, Any], described: Described
    ) -> None:
        """Warn if a plane might turn by more than half a turn; a rate on a GPU is not read."""
        lr, name = group["lr"], group["normalize"]
        if name is None or self._warned_of_angle:
            return
        if isinstance(lr, torch.Tensor):
            if not waiting.reads_at_once(lr):
                return
            lr = lr.item()
        for p in params:
            # Without a rank the gradient is spread over many planes, unless it is of low rank.
            k = low_rank_of(p).rank(p) or 1
            # Of a complex generator one eigenvalue alone may have it all.
            rule, most = ("lr·√(2k)", 2 * k) if p.is_complex() else ("lr·√k", k)
            reach = furthest(lr, most, name)
            if reach > math.pi:
                rule = "lr" if name == "spectral" else rule
                warn(
                    f"With normalize={name!r} a step of {described(p)} may stop at half a turn of "
                    f"a plane, because {rule} = {reach:.3g} is above π: `lr` = {lr} is an angle in "
                    "radians. Lower it, or ignore this if `param_groups` has chosen it."
                )
                self._warned_of_angle = True
                return

    def see_step(
        self,
        unsure: Iterable[Members],
        states: Mapping[torch.Tensor, dict[str, Any]],
        described: Described,
    ) -> bool:
        """Look at parameters that may have skipped a step, and warn of what is known by now.

        Return whether points were measured, which happens now and then.
        """
        if is_capturing():
            return False
        self._steps += 1
        if not self._warned_of_skip:
            for params, _, of_params in unsure:
                counters = [state["skipped"] for state in of_params]
                if is_dtensor(counters[0]):
                    counters = [local_of(counter) for counter in counters]
                if waiting.reads_at_once(counters[0]) and _any(counters):
                    for p, counter in zip(params, counters, strict=True):
                        self._warn_of_count(p, float(counter.sum()), described)
        measures = self._steps % _EVERY == 0
        if measures:
            self._measure(states)
        pending, self._pending = self._pending, []
        for reading in pending:
            if reading.has_arrived():
                for p, value in reading.lines():
                    reading.warner(p, value, described)
            else:
                self._pending.append(reading)
        return measures

    def forget_all_but(self, params: Set[torch.Tensor]) -> None:
        """Forget parameters that are not among these."""
        self._skips_before = {p: n for p, n in self._skips_before.items() if p in params}
        self._far_off &= params

    def _measure(self, states: Mapping[torch.Tensor, dict[str, Any]]) -> None:
        # All that were ever stepped: their gradients may come in turn.
        points = [
            p
            for p in self._skips_before
            if p in states and not p.is_meta and p.numel() > 0 and is_low_rank(manifold_of(p))
        ]
        # The gradients first: the warning then names the one to blame.
        self._send(self._warn_of_gradient, self._nonfinite)
        self._nonfinite = {}
        self._send(self._warn_of_count, {p: local_of(states[p]["skipped"]).sum() for p in points})
        self._send(self._warn_of_error, worst_errors(points))

    def _send(self, warner: Warner, values: Mapping[torch.Tensor, torch.Tensor]) -> None:
        for device in {value.device for value in values.values()}:
            of_device = {p: value for p, value in values.items() if value.device == device}
            self._pending.append(_Reading.of(warner, of_device))

    def _warn_of_count(self, p: torch.Tensor, count: float, described: Described) -> None:
        if count > self._skips_before.get(p, 0.0) and not self._warned_of_skip:
            # Before the warning, which may be an error to the user and must not come again.
            self._warned_of_skip = True
            warn(
                f"A step of {described(p)} was skipped: its gradient, or what was made of it, is "
                f"not finite{_or_disagreed(p)}. {_FURTHER_SKIPS}"
            )

    def _warn_of_gradient(self, p: torch.Tensor, nonfinite: float, described: Described) -> None:
        if nonfinite and not self._warned_of_skip:
            self._warned_of_skip = True
            warn(
                f"The gradient of {described(p)} is not finite: the parameters of groups with "
                f'`skip_nonfinite="all"` have skipped a step. {_FURTHER_SKIPS}'
            )

    def _warn_of_error(self, p: torch.Tensor, error: float, described: Described) -> None:
        if error <= _FAR_OFF:
            self._far_off.discard(p)
        elif p not in self._far_off:
            self._far_off.add(p)
            warn(
                f"{capitalized(described(p))} is off its manifold: "
                f"‖{low_rank_of(p).gram(p)} - I‖ / ‖I‖ is about {error:.1e}. Something other than "
                "this optimizer has changed its values, such as a load, an average of weights or "
                "noise. Put it back by `geoopt_projunn.nn.project_(module)`, or by `proj_()` under "
                "`torch.no_grad()`."
            )


_FURTHER_SKIPS = (
    "Further ones are only counted, in `skipped_steps` and `skipped_steps_by_parameter()`. Look "
    "for a loss that overflows, or lower the learning rate."
)


def _or_disagreed(p: torch.Tensor) -> str:
    if is_dtensor(p):
        return ", or processes differ in its manifold, in `normalize` or in `maximize`"
    # On a GPU; else it is an error.
    if averages_gradients(p) is None or waiting.reads_at_once(p):
        return ""
    return ", or processes had gradients of different parameters"


def _any(counters: list[torch.Tensor]) -> bool:
    # This runs in every step: reading a number takes a third of the time of a sum over it.
    if counters[0].dim() == 0:
        return any(map(torch.Tensor.item, counters))
    return any(bool(counter.any()) for counter in counters)


class _Reading(NamedTuple):
    """Numbers on their way to the host, one for each of some parameters on one device."""

    warner: Warner
    params: list[torch.Tensor]
    values: torch.Tensor
    arrival: torch.cuda.Event | None

    @classmethod
    def of(cls, warner: Warner, values: Mapping[torch.Tensor, torch.Tensor]) -> "_Reading":
        numbers = torch.stack([value.to(torch.float32) for value in values.values()])
        arrival = None
        if numbers.is_cuda:
            with torch.cuda.device(numbers.device):
                # Into pinned memory, which torch does not wait for.
                numbers = numbers.to("cpu", non_blocking=True)
                arrival = torch.cuda.Event()
                arrival.record()
        return cls(warner, list(values), numbers, arrival)

    def has_arrived(self) -> bool:
        return self.arrival is None or self.arrival.query()

    def lines(self) -> Iterable[tuple[torch.Tensor, float]]:
        return zip(self.params, self.values.tolist(), strict=True)
