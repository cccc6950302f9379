import torch

USES_THREADS: bool

class Refused(ValueError): ...

def use_vectors(bytes: int, /) -> int:
    """Make use of vectors of 16, 32 or 64 bytes, for tests; return those of before."""

# What each number is stands in csrc/module.cpp.
def both_sides(*numbers: int) -> None: ...
def add_product(*numbers: int) -> None: ...
def sketch(*numbers: int) -> None: ...
def retract(*numbers: int) -> None: ...
def turn(*numbers: int) -> None: ...
def step(
    dtypes: tuple[torch.dtype, ...],
    integers: tuple[int, ...],
    reals: tuple[float, ...],
    /,
    *lists_and_dispatch: object,
) -> bool | None: ...
def address(
    dtypes: tuple[torch.dtype, ...],
    tensor: torch.Tensor,
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    /,
) -> int: ...
