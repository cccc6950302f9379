"""What the threads of a GPU read and write."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from .operands import BITS, size_of
from .reading import Fault

_Window = ctypes.c_uint8 * 2**40
_SHARED = 1024
"""Where the memory begins that a program shares; 0 may be a fault."""
_SEVERAL = -2


class Global:
    """The memory of this process, of which a kernel may use what it was given.

    Parameters
    ----------
    spans : sequence, optional
        first and last addresses of all that it was given, if that is known
    """

    def __init__(self, spans: Sequence[tuple[int, int]] | None) -> None:
        self._spans = spans

    def load(self, at: np.ndarray, kind: Any) -> np.ndarray:
        """Read a number at each address."""
        window, index = self._found(at, kind)
        return window[index]

    def store(self, at: np.ndarray, values: np.ndarray) -> None:
        """Write a number at each address."""
        window, index = self._found(at, values.dtype)
        window[index] = values

    def _found(self, at: np.ndarray, kind: Any) -> tuple[np.ndarray, np.ndarray]:
        size, first = size_of(kind), int(at.min())
        if self._spans is not None:
            is_given = np.zeros(len(at), bool)
            for begin, end in self._spans:
                is_given |= (begin <= at) & (at + size <= end)
            if not is_given.all():
                raise Fault(f"{at[~is_given][0]:#x} is in none of the arguments")
        if int(at.max()) - first > ctypes.sizeof(_Window) - size:
            raise Fault("addresses are further apart than any tensor is long")
        return np.frombuffer(_Window.from_address(first), kind), (at - first) // size


class Shared:
    """What the warps of a program share; who used which byte since they all met last.

    Parameters
    ----------
    size : int
        in bytes
    """

    start = _SHARED

    def __init__(self, size: int) -> None:
        # Nobody may read what nobody has written: not a number.
        self._bytes = np.full(-(-size // 16) * 16, 255, np.uint8)
        self._writer, self._reader, self._copied = np.full((3, len(self._bytes)), -1)

    def barrier(self) -> None:
        """Let all warps see what the others have written."""
        self._writer[:] = self._reader[:] = -1

    def load(self, at: np.ndarray, kind: Any, warp: int) -> np.ndarray:
        """Read a number at each address."""
        index, every = self._found(at, kind)
        self._assert_alone(self._writer, every, warp, "reads what another one has written")
        reader = self._reader[every]
        self._reader[every] = np.where((reader == -1) | (reader == warp), warp, _SEVERAL)
        return self._bytes.view(kind)[index]

    def store(self, at: np.ndarray, values: np.ndarray, warp: int) -> None:
        """Write a number at each address."""
        index, every = self._found(at, values.dtype)
        # Warps that compute the same write the same. Of threads of one warp the last one counts:
        # they may have added up the same numbers in other orders.
        numbers = self._bytes.view(values.dtype)
        before = numbers[index]
        numbers[index] = values
        changed = every[np.repeat(numbers[index] != before, values.dtype.itemsize)]
        self._assert_alone(self._writer, changed, warp, "writes where another one has written")
        self._assert_alone(self._reader, changed, warp, "writes where another one has read")
        self._writer[changed] = warp

    def announce(self, at: np.ndarray, size: int, warp: int) -> None:
        """Let a copy begin, of which nobody knows when it ends."""
        _, every = self._found(at, BITS[32], size)
        self._assert_alone(self._writer, every, warp, "copies to where another one has written")
        self._assert_alone(self._reader, every, warp, "copies to where another one has read")
        self._copied[every] = 1

    def arrive(self, at: np.ndarray, values: np.ndarray, warp: int) -> None:
        """Let a copy end, for which its warp has waited."""
        _, every = self._found(at, values.dtype, arrives=True)
        self._copied[every] = -1
        self.store(at, values, warp)

    def _found(
        self, at: np.ndarray, kind: Any, size: int | None = None, *, arrives: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        size = size_of(kind) if size is None else size
        index = at - self.start
        if (index < 0).any() or (index + size > len(self._bytes)).any():
            raise Fault("outside of the memory that a program shares")
        every = (index[:, None] + np.arange(size)).ravel()
        if not arrives and (self._copied[every] == 1).any():
            raise Fault("a warp uses what is still being copied")
        return index // size, every

    @staticmethod
    def _assert_alone(of: np.ndarray, every: np.ndarray, warp: int, what: str) -> None:
        if ((of[every] != -1) & (of[every] != warp)).any():
            raise Fault(f"a warp {what} since the last barrier")
