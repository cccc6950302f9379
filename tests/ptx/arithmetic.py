"""What becomes of the numbers of each thread by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .operands import BITS, KINDS, THREADS, bits_of, size_of
from .reading import Fault

Operation = tuple[tuple[Any, ...], Callable[..., np.ndarray]]


def operation(name: tuple[str, ...], operands: int) -> Operation:
    """Return the kinds of the inputs of an instruction, and what it computes.

    Parameters
    ----------
    name : tuple of str
        of the instruction
    operands : int
        how many inputs it has

    Raises
    ------
    Fault
        For an instruction that is not known.
    """
    verb, kind = name[0], KINDS.get(name[-1])
    if kind is None or (verb == "cvt" and name[-2] not in KINDS) or not set(name[1:]) <= _KNOWN:
        raise Fault(f"unknown: {'.'.join(name)}")
    if verb == "cvt":
        return (kind,), _conversion(name)
    if verb == "selp":
        return (kind, kind, np.bool_), lambda x, y, which: np.where(which, x, y)
    if verb == "setp":
        return (kind,) * 2, _flushing(name, _COMPARISONS[name[1]])
    if verb in ("shl", "shr"):
        return (kind, np.uint32), _shift_left if verb == "shl" else _shift_right
    if verb == "bfe":
        return (kind, np.uint32, np.uint32), _extract
    if verb == "prmt":
        return (np.uint32,) * 3, _permute
    if verb in ("mul", "mad") and "wide" in name:
        wide = KINDS[f"{name[-1][0]}{16 * size_of(kind)}"]
        return (kind, kind, wide)[:operands], _wide_product
    if verb in ("fma", "mad"):
        return (kind,) * 3, _fused if verb == "fma" else lambda x, y, z: x * y + z
    found = _FUNCTIONS.get(verb)
    if found is None:
        raise Fault(f"unknown: {'.'.join(name)}")
    if verb in ("div", "rem") and kind not in (np.float32, np.float64):
        found = _quotient if verb == "div" else _remainder
    if verb == "not" and kind is np.bool_:
        found = np.logical_not
    if verb in ("min", "max") and "NaN" in name:
        found = np.minimum if verb == "min" else np.maximum
    if verb == "rcp" and kind is np.float64:
        found = _rough_reciprocal
    return (kind,) * operands, _flushing(name, found)


def _flushing(name: tuple[str, ...], function: Callable[..., np.ndarray]) -> Any:
    """Take subnormal numbers for zero, if an instruction does."""
    if "ftz" not in name or "f64" in name:
        return function

    def flush(x: np.ndarray) -> np.ndarray:
        if x.dtype != np.float32:
            return x
        return np.where(np.abs(x) < np.finfo(x.dtype).tiny, np.copysign(x.dtype.type(0), x), x)

    return lambda *inputs: flush(function(*map(flush, inputs)))


def _fused(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Multiply and add in more digits, and round: nearly what a GPU does, which rounds but once."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    return (x.astype(wide) * y + z).astype(x.dtype)


def _wide_product(x: np.ndarray, y: np.ndarray, z: int | np.ndarray = 0) -> np.ndarray:
    wide = np.dtype(f"{x.dtype.kind}{2 * x.dtype.itemsize}")
    return x.astype(wide) * y.astype(wide) + z


def _rough_reciprocal(x: np.ndarray) -> np.ndarray:
    """Return 20 digits of a reciprocal, as GPUs do."""
    return ((1 / x).view(np.uint64) & np.uint64(0xFFFFFFFF00000000)).view(np.float64)


def _quotient(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    safe = np.where(y == 0, 1, y).astype(x.dtype)
    return ((x - np.fmod(x, safe)) // safe).astype(x.dtype)


def _remainder(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.fmod(x, np.where(y == 0, 1, y).astype(x.dtype))


def _shift_left(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = 8 * x.dtype.itemsize
    return np.where(by < bits, x << np.minimum(by, bits - 1).astype(x.dtype), 0).astype(x.dtype)


def _shift_right(x: np.ndarray, by: np.ndarray) -> np.ndarray:
    bits = 8 * x.dtype.itemsize
    shifted = x >> np.minimum(by, bits - 1).astype(x.dtype)
    return shifted if x.dtype.kind == "i" else np.where(by < bits, shifted, 0).astype(x.dtype)


def _extract(x: np.ndarray, first: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return some bits of a number, with the sign of their first one if it has a sign."""
    if (first != first[0]).any() or (count != count[0]).any():
        raise Fault("threads extract different bits")
    bits, first, count = 8 * x.dtype.itemsize, int(first[0]), int(count[0])
    if first + count > bits:
        raise Fault("there are not as many bits to extract")
    kind = x.dtype.type
    return (x << kind(bits - first - count)) >> kind(bits - count)


def _permute(x: np.ndarray, y: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Choose four of the eight bytes of two numbers, or their signs."""
    both = np.stack((x, y), 1).view(np.uint8)
    chosen = np.empty((THREADS, 4), np.uint8)
    for place in range(4):
        index = (which >> np.uint32(4 * place)) & np.uint32(15)
        byte = both[np.arange(THREADS), index & np.uint32(7)]
        chosen[:, place] = np.where(index & np.uint32(8), np.where(byte & 128, 255, 0), byte)
    return chosen.view(np.uint32)[:, 0]


def _conversion(name: tuple[str, ...]) -> Callable[[np.ndarray], np.ndarray]:
    to = KINDS[name[-2]]
    rounding = next((_ROUNDINGS[part] for part in name if part in _ROUNDINGS), None)

    def convert(x: np.ndarray) -> np.ndarray:
        if rounding is not None:
            x = rounding(x)
            if np.dtype(to).kind in "iu":
                # The nearest that there is; of what is not a number, 0.
                limits = np.iinfo(to)
                wide = np.nan_to_num(x.astype(np.longdouble), posinf=np.inf, neginf=-np.inf)
                x = np.clip(wide, limits.min, limits.max)
        return x.astype(to)

    return convert


def _is_nan(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x != x) | (y != y)


_ROUNDINGS = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
_COMPARISONS: dict[str, Callable[..., np.ndarray]] = {
    "eq": np.equal,
    "ne": lambda x, y: (x != y) & ~_is_nan(x, y),
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "equ": lambda x, y: (x == y) | _is_nan(x, y),
    "neu": np.not_equal,
    "ltu": lambda x, y: ~(x >= y),
    "leu": lambda x, y: ~(x > y),
    "gtu": lambda x, y: ~(x <= y),
    "geu": lambda x, y: ~(x < y),
    "num": lambda x, y: ~_is_nan(x, y),
    "nan": _is_nan,
}
# Modifiers that make no difference here, or that are looked at.
_KNOWN = {
    *KINDS,
    *_COMPARISONS,
    *("rn", "rni", "rzi", "rmi", "rpi", "lo", "wide", "approx", "full", "ftz", "NaN"),
}
_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "mov": lambda x: x,
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "rem": _remainder,
    "min": np.fmin,
    "max": np.fmax,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "abs": np.abs,
    "sqrt": np.sqrt,
    "rcp": np.reciprocal,
}


def joined(parts: list[np.ndarray], kind: Any) -> np.ndarray:
    """Return one number made of the bits of several."""
    return np.stack(parts, 1).view(bits_of(kind))[:, 0]


def divided(x: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the bits of a number as several."""
    parts = np.ascontiguousarray(x).view(BITS[8 * x.dtype.itemsize // count])
    return [part.copy() for part in parts.reshape(THREADS, count).T]
