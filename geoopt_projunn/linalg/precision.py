"""The precisions a step works in, and how torch is asked for them."""

import functools
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
Undo = Callable[[], None]

WIDE = {
    torch.float32: torch.float64,
    torch.float64: torch.float64,
    torch.complex64: torch.complex128,
    torch.complex128: torch.complex128,
}
"""The supported dtypes, and the one in which cores and bases are computed for each."""

_AUTOCAST_DEVICES = ("cpu", "cuda", "xpu")
# "none" is what no setting reads as: torch then rounds no input. Only cuDNN has another default,
# which reads as "tf32".
_FULL = ("ieee", "none")
_BACKENDS: Any = torch.backends
# torch 2.9 added it to the older flags, and raises where one is read that contradicts it.
_HAS_FP32_PRECISION = hasattr(_BACKENDS.cuda.matmul, "fp32_precision")


class _Region:
    """A context in which a setting of torch is full precision, and after which it is as before.

    The settings are those of the process: other threads see them as well. Where several are in
    such a region, the first to enter changes the settings and the last to leave puts them back,
    so that none of them loses its precision half-way. What a thread outside sets meanwhile is lost.
    """

    def __init__(self, change: Callable[[], Undo | None]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._inside = 0
        self._undo: Undo | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._undo = self._change()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._undo is not None:
                self._undo()
                self._undo = None


def _raise(owner: Any, before: str) -> Undo:
    """Set the precision of one kind of operation; return what puts it back."""
    owner.fp32_precision = "ieee"
    return partial(_put_back, owner, before)


def _put_back(owner: Any, before: str) -> None:
    # "none" follows a more general setting. Where that reads the same it was followed before, or
    # might as well have been; a value set here would stay when the user changes the general one.
    owner.fp32_precision = "none"
    if owner.fp32_precision != before:
        owner.fp32_precision = before


def _all(undos: list[Undo]) -> None:
    for undo in undos:
        undo()


def _raise_products() -> Undo | None:
    cuda, mkldnn = _CUDA.fp32_precision, _MKLDNN.fp32_precision
    if cuda in _FULL and mkldnn in _FULL:
        return None
    both = (_CUDA, cuda), (_MKLDNN, mkldnn)
    undos = [_raise(owner, before) for owner, before in both if before not in _FULL]
    return partial(_all, undos)


def _raise_cudnn_rnn() -> Undo | None:
    cudnn = _BACKENDS.cudnn
    before = cudnn.rnn.fp32_precision
    if before in _FULL:
        return None
    # cuDNN's default has no name. Where it holds, change the general setting, which it follows.
    undo = _raise(cudnn, cudnn.fp32_precision)
    if cudnn.rnn.fp32_precision in _FULL:
        return undo
    undo()
    return _raise(cudnn.rnn, before)


def _raise_old_products() -> Undo | None:
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        return None
    torch.set_float32_matmul_precision("highest")
    return partial(torch.set_float32_matmul_precision, before)


def _raise_old_cudnn() -> Undo | None:
    if not torch.backends.cudnn.allow_tf32:
        return None
    torch.backends.cudnn.allow_tf32 = False
    return partial(setattr, torch.backends.cudnn, "allow_tf32", True)


if _HAS_FP32_PRECISION:
    _CUDA, _MKLDNN = _BACKENDS.cuda.matmul, _BACKENDS.mkldnn.matmul
    _PRODUCTS = _Region(_raise_products)
    _CUDNN_RNN = _Region(_raise_cudnn_rnn)
else:
    _PRODUCTS = _Region(_raise_old_products)
    _CUDNN_RNN = _Region(_raise_old_cudnn)


# The compiler runs it as it is while it traces, and leaves it out of what it makes.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _warn_if_reduced() -> None:
    if _HAS_FP32_PRECISION:
        reduced = not {_CUDA.fp32_precision, _MKLDNN.fp32_precision} <= set(_FULL)
    else:
        reduced = torch.get_float32_matmul_precision() != "highest"
    if reduced:
        warnings.warn(
            "Orthogonal and unitary matrices need products in full precision, but a function that "
            "uses them is compiled while float32 products are reduced to TF32 or bfloat16. Compile "
            'and call it with `torch.set_float32_matmul_precision("highest")`, or leave that '
            "function uncompiled: then full precision is set for it by itself.",
            stacklevel=2,
        )


def full_precision(function: Callable[P, T]) -> Callable[P, T]:
    r"""Run a function with the products of its own precision: no autocast, no TF32 or bfloat16.

    Inputs of products rounded to 10 bits would leave :math:`\lVert x^H x - I \rVert` at 1e-2.
    The user's settings are put back afterwards, also after an exception. The products of a
    backward pass that autograd derives run as the user has set them.

    What torch.compile traces cannot change the settings; if they are reduced, a warning says so.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        for device in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device):
                with torch.autocast(device, enabled=False):
                    return wrapped(*args, **kwargs)
        if torch.compiler.is_compiling():
            _warn_if_reduced()
            return function(*args, **kwargs)
        with _PRODUCTS:
            return function(*args, **kwargs)

    return wrapped


def full_precision_cudnn(function: Callable[P, T]) -> Callable[P, T]:
    """Do the same around recurrences of torch's own; cuDNN's are in TF32 by default."""

    @full_precision
    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with _CUDNN_RNN:
            return function(*args, **kwargs)

    return wrapped
