"""Choose who takes a step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..linalg.rows import IN_TORCH, Products
from .cpu import CPU, kernels
from .distributed import Distributed, is_spread, local_of
from .reference import Reference
from .triton import Triton
from .triton.support import warn_of_lack

_BACKENDS = {backend.name: backend for backend in (CPU(), Triton(), Reference())}
"""In order of preference; the last one serves everything."""
*_PREFERRED, _LAST = _BACKENDS.values()

_asked_for: list[list[str]] = []
"""A list of one name for each context of :func:`use`, the last one counts."""


def choose(x: torch.Tensor) -> Reference:
    """Return the backend for a step of tensors like ``x``, by device, dtype and mode of autograd.

    A backend itself leaves to torch's operations what it does not know, such as a layout or a
    sketch. Of what lies on several processes, the part of each is served by the backend chosen for
    that part.

    Raises
    ------
    RuntimeError
        If :func:`use` asks for one that cannot serve them.

    Warns
    -----
    UserWarning
        Once for each GPU that the Triton kernels cannot serve, and once if the C++ kernels are
        missing.
    """
    return _DISTRIBUTED if is_spread(x) else _choose_local(x)


def _choose_local(x: torch.Tensor) -> Reference:
    if _asked_for:
        assert_serves(x)
        return _BACKENDS[_asked_for[-1][0]]
    for backend in _PREFERRED:
        if backend.refusal(x) is None:
            return backend
    if not torch.compiler.is_compiling():
        if x.is_cuda:
            warn_of_lack(x.device)
        elif x.is_cpu:
            kernels.warn_of_lack()
    return _LAST


_DISTRIBUTED = Distributed(_choose_local)


def assert_serves(x: torch.Tensor) -> None:
    """Raise what :func:`choose` would raise, before anything has moved."""
    for (name,) in _asked_for[-1:]:
        refusal = _BACKENDS[name].refusal(local_of(x))
        if refusal is not None:
            raise RuntimeError(
                f"The backend {name!r} is asked for by `backends.use` but cannot serve: "
                f"{refusal}; step outside of its `with` block, or use 'reference'."
            )


def products_for(x: torch.Tensor) -> Products:
    """Return the products of the backend for ``x``; outside of steps no choice is refused."""
    if is_spread(x):
        return IN_TORCH
    asked = [_BACKENDS[name] for (name,) in _asked_for[-1:]] or list(_BACKENDS.values())
    for backend in asked:
        if backend.refusal(x) is None:
            return backend.products
    return IN_TORCH


def available() -> list[str]:
    """Return the names of the backends that can serve on this machine."""
    return [name for name, backend in _BACKENDS.items() if backend.lack() is None]


@contextmanager
def use(name: str) -> Iterator[None]:
    """Take steps by one backend, in all threads, for comparison and tests.

    It leaves to torch's operations what it does not know, such as a layout or a sketch.

    Parameters
    ----------
    name : str
        one of :func:`available`

    Raises
    ------
    ValueError
        If there is no such backend on this machine.
    """
    if name not in available():
        known = ", ".join(map(repr, available()))
        lack = f": {_BACKENDS[name].lack()}" if name in tuple(_BACKENDS) else ""
        raise ValueError(
            f"`name` must be one of {known}, the backends of this machine, got {name!r}{lack}."
        )
    own = [name]
    _asked_for.append(own)
    try:
        yield
    finally:
        # By identity: contexts of several threads need not end in turn.
        _asked_for[:] = [asked for asked in _asked_for if asked is not own]
