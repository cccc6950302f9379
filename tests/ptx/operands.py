"""Registers and constants: one number for each of the 32 threads of a warp."""

import functools
import re
import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from .reading import Fault

THREADS = 32
BITS = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
KINDS = {
    "pred": np.bool_,
    "f32": np.float32,
    "f64": np.float64,
    **{f"{letter}{bits}": kind for bits, kind in BITS.items() for letter in "bu"},
    **{f"s{bits}": np.dtype(f"int{bits}").type for bits in BITS},
}
_WIDTHS = {"%rs": 16, "%rd": 64, "%r": 32}
_OF_THREADS = ("%tid.", "%ctaid.", "%nctaid.", "%ntid.", "%laneid")

Getter = Callable[[Any], np.ndarray]


@functools.cache
def size_of(kind: Any) -> int:
    """Return the bytes of a number."""
    return np.dtype(kind).itemsize


def bits_of(kind: Any) -> Any:
    """Return the kind of the bits of a number."""
    return np.bool_ if kind is np.bool_ else BITS[8 * size_of(kind)]


@functools.cache
def kind_of(register: str) -> Any:
    """Return the kind of what a register holds."""
    if register.startswith("%p"):
        return np.bool_
    return BITS[_WIDTHS[re.match(r"%[a-z]+", register)[0]]]


def getter(text: str, kind: Any) -> Getter:
    """Return what reads an operand, given a call of a function."""
    if text.startswith(_OF_THREADS):
        return lambda call: call.warp.numbers[text].astype(kind)
    if text.startswith("%"):
        return _register(text, kind)
    try:
        value = _constant(text, kind)
    except ValueError:
        return lambda call: np.full(THREADS, call.warp.address_of(text), kind)
    return lambda call: value


def _register(name: str, kind: Any) -> Getter:
    own = kind_of(name)

    def get(call: Any) -> np.ndarray:
        try:
            value = call.registers[name]
        except KeyError:
            raise Fault(f"{name} is read before it is written") from None
        if kind is own:
            return value
        return value.view(kind) if size_of(kind) == size_of(own) else value.astype(kind)

    return get


def _constant(text: str, kind: Any) -> np.ndarray:
    if text.startswith(("0d", "0f")):
        form = ">d" if text.startswith("0d") else ">f"
        value = np.array(struct.unpack(form, bytes.fromhex(text[2:]))[0], form[1])
    else:
        bits = bits_of(kind)
        number = int(text.rstrip("U"), 0)
        value = np.array(number if kind is np.bool_ else number % 2 ** (8 * size_of(bits)), bits)
    return np.full(THREADS, value.view(kind))


def put(call: Any, register: str, value: np.ndarray, mask: np.ndarray | None) -> None:
    """Write a register, for the threads of a mask."""
    if register == "_":
        return
    kind = kind_of(register)
    if value.dtype.itemsize != size_of(kind):
        value = value.astype(kind)
    elif value.dtype != kind:
        value = value.view(kind)
    if mask is not None:
        # What a thread has not written is nothing to rely on.
        before = call.registers.get(register)
        if before is None:
            before = np.full(THREADS, True) if kind is np.bool_ else ~np.zeros(THREADS, kind)
        value = np.where(mask, value, before)
    call.registers[register] = value
