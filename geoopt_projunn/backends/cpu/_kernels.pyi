from collections.abc import Sequence

USES_THREADS: bool

# What each number is stands in csrc/module.cpp.
def both_sides(*numbers: int) -> None: ...
def add_product(*numbers: int) -> None: ...
def sketch(*numbers: int) -> None: ...
def retract(*numbers: int) -> None: ...
def turn(*numbers: int) -> None: ...
def step(
    numbers: Sequence[int],
    reals: Sequence[float],
    x: Sequence[int],
    grad: Sequence[int],
    taken: Sequence[int],
    skipped: Sequence[int],
    first: Sequence[int],
    second: Sequence[int],
    third: Sequence[int],
    /,
) -> None: ...
