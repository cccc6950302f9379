"""Parameters whose gradients are averaged by their steps, and over which processes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from . import collectives

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_MARK = "_gradient_is_averaged_over"

_marked: "WeakKeyDictionary[ProcessGroup, int]" = WeakKeyDictionary()
"""How many parameters this process has marked for each group."""


class _Mark:
    """A group of processes, of which copies and pickles of a parameter know nothing."""

    def __init__(self, group: "ProcessGroup", number: int) -> None:
        self.group, self.number = group, number

    def __reduce__(self) -> Any:
        return _unmarked, ()


def _unmarked() -> None:
    return None


def average_gradients_of(p: torch.Tensor, group: "ProcessGroup") -> None:
    """Let steps of a parameter average products with its gradient over a group.

    It gets the next number, by which processes know that they mean the same parameter; one that is
    marked already keeps its number.
    """
    if averages_gradients(p) is not group:
        number = _marked.get(group, 0)
        setattr(p, _MARK, _Mark(group, number))
        _marked[group] = number + 1


def averages_gradients(p: torch.Tensor) -> "ProcessGroup | None":
    """Return the group whose gradients of a parameter are averaged in its steps, if any."""
    mark = getattr(p, _MARK, None)
    return None if mark is None else mark.group


def number_of(p: torch.Tensor) -> int:
    """Return the number of a marked parameter among those of its group, from 0."""
    number: int = getattr(p, _MARK).number
    return number


def any_is_marked() -> bool:
    """Return whether this process may have a marked parameter."""
    return len(_marked) > 0


def like_its_parameter(view: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Return a view of a parameter, of which steps average the gradients if they do of it."""
    if (mark := getattr(p, _MARK, None)) is not None:
        setattr(view, _MARK, mark)
    return view


@torch.no_grad()
def receive_first(params: Iterable[torch.Tensor]) -> None:
    """Give parameters the values of the first process of those that average their gradients.

    All processes have to give the same parameters; their order does not matter.
    """
    marked = [p for p in params if averages_gradients(p) is not None and not p.is_meta]
    for p in sorted(marked, key=_place):
        group = averages_gradients(p)
        assert group is not None
        p.copy_(collectives.first_of(p.detach().clone(), group))


def _place(p: torch.Tensor) -> tuple[str, int]:
    group = averages_gradients(p)
    assert group is not None
    return group.group_name, number_of(p)


def gives_values(p: torch.Tensor) -> bool:
    """Return whether the values of a parameter on this process count, and not another one's."""
    group = averages_gradients(p)
    return group is None or group.rank() == 0
