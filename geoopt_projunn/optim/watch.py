"""What an optimizer tells its user while it runs, without waiting for a GPU."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch

from ..linalg.dense import estimate_orthogonality_error
from .messages import capitalized, warn
from .nonfinite import reads_at_once

# What a GPU has measured is read some steps later: its user hears of it within 100 steps.
_EVERY = 50
# ‖xᴴx − I‖ / √n. Rounding stays far below.
_FAR_OFF = 1e-3

Described = Callable[[torch.Tensor], str]
Told = Callable[[torch.Tensor, float, Described], None]


class Watch:
    """Measure points and read counters now and then, and warn.

    It warns of a point that is far off its manifold, once, and again if it was back in between; and
    of the first step that was left out because it was not finite.
    """

    def __init__(self) -> None:
        self._steps = 0
        self._told_of_skips = False
        self._far_off: set[torch.Tensor] = set()
        self._known: dict[torch.Tensor, float] = {}
        self._bad: dict[torch.Tensor, torch.Tensor] = {}
        self._pending: list[_Reading] = []

    def knows_of(self, p: torch.Tensor, skipped: torch.Tensor | None) -> None:
        """Take the steps that a parameter has skipped so far as known; waits for its device."""
        self._known[p] = 0.0 if skipped is None or p.is_meta else float(skipped.sum())

    def notice(self, finite: Mapping[torch.Tensor, torch.Tensor], described: Described) -> None:
        """Warn of gradients that are not finite; on a GPU, when their flags are next read."""
        if self._told_of_skips:
            return
        for p, flag in finite.items():
            if reads_at_once(p):
                self._tell_of_skip(p, not flag, described)
            else:
                self._bad[p] = ~flag | self._bad[p] if p in self._bad else ~flag

    def look(
        self,
        params: list[torch.Tensor],
        states: Mapping[torch.Tensor, dict[str, Any]],
        described: Described,
    ) -> None:
        """Look at points on LowRankUnitary after a step, and warn of what is known by now."""
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return
        self._steps += 1
        if not self._told_of_skips:
            for p in params:
                skipped = states[p]["skipped"]
                if reads_at_once(skipped) and (count := _total(skipped)):
                    self._tell_of_count(p, count, described)
        if self._steps % _EVERY == 0:
            self._send_all([p for p in params if not p.is_meta and p.numel() > 0], states)
        pending, self._pending = self._pending, []
        for reading in pending:
            if reading.has_arrived():
                for p, value in reading.lines():
                    reading.told(p, value, described)
            else:
                self._pending.append(reading)

    def _send_all(
        self, points: list[torch.Tensor], states: Mapping[torch.Tensor, dict[str, Any]]
    ) -> None:
        self._send(self._tell_of_error, {p: _relative_error(p) for p in points})
        self._send(self._tell_of_count, {p: states[p]["skipped"].sum() for p in points})
        self._send(self._tell_of_skip, self._bad)
        self._bad = {}

    def _send(self, told: Told, values: Mapping[torch.Tensor, torch.Tensor]) -> None:
        for device in {value.device for value in values.values()}:
            self._pending.append(
                _Reading.of(told, {p: v for p, v in values.items() if v.device == device})
            )

    def _tell_of_count(self, p: torch.Tensor, count: float, described: Described) -> None:
        self._tell_of_skip(p, count > self._known.get(p, 0.0), described)

    def _tell_of_skip(self, p: torch.Tensor, skipped: float, described: Described) -> None:
        if skipped and not self._told_of_skips:
            self._told_of_skips = True
            warn(
                f"A step of {described(p)} was left out, because its gradient, or what was made "
                "of it, is not finite. Further ones are only counted: see `skipped_steps` and "
                "`skipped_steps_by_parameter()`. Look for a loss that overflows, or lower the "
                "learning rate."
            )

    def _tell_of_error(self, p: torch.Tensor, error: float, described: Described) -> None:
        if error <= _FAR_OFF:
            self._far_off.discard(p)
        elif p not in self._far_off:
            self._far_off.add(p)
            warn(
                f"{capitalized(described(p))} is off its manifold: ‖xᴴx - I‖ / √n is about "
                f"{error:.1e}. Its values were changed by something else than this optimizer, such "
                "as a load, an average of weights or noise. Put it back by "
                "`geoopt_projunn.nn.project_(module)`, or by `proj_()` under `torch.no_grad()`."
            )


class _Reading(NamedTuple):
    """Numbers on their way to the host, one for each of some parameters on one device."""

    told: Told
    params: list[torch.Tensor]
    values: torch.Tensor
    arrival: torch.cuda.Event | None

    @classmethod
    def of(cls, told: Told, values: Mapping[torch.Tensor, torch.Tensor]) -> "_Reading":
        numbers = torch.stack([value.to(torch.float32) for value in values.values()])
        arrival = None
        if numbers.is_cuda:
            with torch.cuda.device(numbers.device):
                # Into pinned memory, which torch does not wait for.
                numbers = numbers.to("cpu", non_blocking=True)
                arrival = torch.cuda.Event()
                arrival.record()
        return cls(told, list(values), numbers, arrival)

    def has_arrived(self) -> bool:
        return self.arrival is None or self.arrival.query()

    def lines(self) -> Iterable[tuple[torch.Tensor, float]]:
        return zip(self.params, self.values.tolist(), strict=True)


def _total(skipped: torch.Tensor) -> float:
    # A sum takes five times the time of a number, once in each step of each parameter.
    return skipped.item() if skipped.dim() == 0 else skipped.sum().item()


def _relative_error(p: torch.Tensor) -> torch.Tensor:
    return estimate_orthogonality_error(p.detach()).max() / math.sqrt(p.shape[-1])
