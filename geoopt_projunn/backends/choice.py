"""Choose who takes a step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .cpu import CPU
from .reference import Reference

_BACKENDS = {backend.name: backend for backend in (CPU(), Reference())}
"""In order of preference; the last one serves everything."""

_forced: str | None = None


def choose(x: torch.Tensor) -> Reference:
    """Return the backend for tensors like ``x``, by device, dtype and mode of autograd.

    Raises
    ------
    RuntimeError
        If :func:`use` asks for one that cannot serve them.
    """
    if _forced is not None:
        refusal = _BACKENDS[_forced].refusal(x)
        if refusal is not None:
            raise RuntimeError(
                f"The backend {_forced!r} is asked for by `backends.use` but cannot serve: "
                f"{refusal}; leave its context, or use 'reference'."
            )
        return _BACKENDS[_forced]
    return next(backend for backend in _BACKENDS.values() if backend.refusal(x) is None)


def available() -> list[str]:
    """Return the names of the backends that can serve on this machine."""
    return [name for name, backend in _BACKENDS.items() if backend.is_available()]


@contextmanager
def use(name: str) -> Iterator[None]:
    """Take all steps by one backend, in all threads, for comparison and tests.

    Parameters
    ----------
    name : str
        one of :func:`available`

    Raises
    ------
    ValueError
        If there is no such backend on this machine.
    """
    global _forced
    if name not in available():
        known = ", ".join(map(repr, available()))
        raise ValueError(
            f"`name` must be one of {known}, the backends of this machine, got {name!r}."
        )
    before, _forced = _forced, name
    try:
        yield
    finally:
        _forced = before
