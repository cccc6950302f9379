"""What instructions do to the registers of a call, and to memory."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .arithmetic import divided, joined, operation
from .operands import BITS, KINDS, THREADS, Getter, bits_of, getter, put, size_of
from .reading import Fault, Instruction, members

if TYPE_CHECKING:
    from .warps import Call

LANES = np.arange(THREADS)
Mask = np.ndarray | None
"""Which threads take part; None for all."""
Action = Callable[["Call", Mask], None]


def action_of(instruction: Instruction) -> Action:
    """Return a function that runs one instruction."""
    maker = _MAKERS.get(instruction.name[0], _arithmetic)
    return maker(instruction)


def _arithmetic(instruction: Instruction) -> Action:
    to, *sources = instruction.operands
    kinds, function = operation(instruction.name, len(sources))
    kind = KINDS.get(instruction.name[-1])
    if instruction.name[0] == "mov" and sources[0].startswith("{"):
        parts = members(sources[0])
        gets = [getter(part, BITS[8 * size_of(kind) // len(parts)]) for part in parts]
        return lambda call, mask: put(call, to, joined([get(call) for get in gets], kind), mask)
    gets = [getter(source, own) for source, own in zip(sources, kinds, strict=True)]
    parts = members(to)

    def act(call: "Call", mask: Mask) -> None:
        value = function(*[get(call) for get in gets])
        if len(parts) == 1:
            put(call, to, value, mask)
            return
        for register, part in zip(parts, divided(value, len(parts)), strict=True):
            put(call, register, part, mask)

    return act


def _load_argument(instruction: Instruction) -> Action:
    to, source = instruction.operands
    # With its sign, which counts if the register has more bits.
    kind, name = KINDS[instruction.name[-1]], source.strip("[]")
    bits = bits_of(kind)
    return lambda call, mask: put(call, to, call.arguments[name].astype(bits).view(kind), mask)


def _pass(instruction: Instruction) -> Action:
    to, source = instruction.operands
    get = getter(source, KINDS[instruction.name[-1]])

    def act(call: "Call", mask: Mask) -> None:
        call.passed[to.strip("[]")] = get(call)

    return act


def _address(text: str, kind: Any) -> Getter:
    name, _, offset = text.strip("[] ").partition("+")
    get = getter(name.strip(), kind)
    return lambda call: get(call).astype(np.int64) + int(offset or 0)


def _chosen(mask: Mask) -> np.ndarray:
    return LANES if mask is None else np.flatnonzero(mask)


def _used(at: np.ndarray, size: int, mask: Mask) -> np.ndarray:
    """Return the addresses of the threads that take part."""
    at = at[_chosen(mask)]
    if (at % size).any():
        raise Fault("an address is not a multiple of what is read there")
    return at


def _load(instruction: Instruction) -> Action:
    if "param" in instruction.name:
        return _load_argument(instruction)
    is_shared = "shared" in instruction.name
    kind, registers = KINDS[instruction.name[-1]], members(instruction.operands[0])
    address = _address(instruction.operands[1], np.uint32 if is_shared else np.uint64)
    size = size_of(kind)

    def act(call: "Call", mask: Mask) -> None:
        at, warp = _used(address(call), size * len(registers), mask), call.warp
        for index, register in enumerate(registers):
            value, where = np.zeros(THREADS, kind), at + index * size
            if len(at) and is_shared:
                value[_chosen(mask)] = warp.shared.load(where, kind, warp.number)
            elif len(at):
                value[_chosen(mask)] = warp.global_memory().load(where, kind)
            put(call, register, value, mask)

    return act


def _store(instruction: Instruction) -> Action:
    if "param" in instruction.name:
        return _pass(instruction)
    is_shared = "shared" in instruction.name
    kind = bits_of(KINDS[instruction.name[-1]])
    address = _address(instruction.operands[0], np.uint32 if is_shared else np.uint64)
    gets = [getter(source, kind) for source in members(instruction.operands[1])]
    size = size_of(kind)

    def act(call: "Call", mask: Mask) -> None:
        at, warp = _used(address(call), size * len(gets), mask), call.warp
        for index, get in enumerate(gets if len(at) else ()):
            where, values = at + index * size, get(call)[_chosen(mask)]
            if is_shared:
                warp.shared.store(where, values, warp.number)
            else:
                warp.global_memory().store(where, values)

    return act


def _copy(instruction: Instruction) -> Action:
    if {"commit_group", "wait_group"} & set(instruction.name):
        return _order_copies(instruction)
    to, source = (
        _address(text, kind)
        for text, kind in zip(instruction.operands, (np.uint32, np.uint64), strict=False)
    )
    size = int(instruction.operands[2], 0)
    # Of what is not read there are zeros.
    read = getter(instruction.operands[3], np.uint32) if len(instruction.operands) > 3 else None

    def act(call: "Call", mask: Mask) -> None:
        every = _chosen(mask)
        reads = np.full(THREADS, size, np.uint32) if read is None else read(call)
        if not np.isin(reads, (0, size)).all():
            raise Fault("a copy is part data and part zeros")
        words = np.zeros((size // 4, THREADS), np.uint32)
        which = (reads > 0) & np.isin(LANES, every)
        at = _used(source(call), size, which)
        for index in range(size // 4 if len(at) else 0):
            words[index, which] = call.warp.global_memory().load(at + 4 * index, np.uint32)
        if len(every):
            call.warp.begin_copy(_used(to(call), size, mask), [word[every] for word in words])

    return act


def _order_copies(instruction: Instruction) -> Action:
    def act(call: "Call", mask: Mask) -> None:
        _assert_all(mask)
        if "commit_group" in instruction.name:
            call.warp.commit()
        else:
            call.warp.wait(int(instruction.operands[0]))

    return act


def _add_atomically(instruction: Instruction) -> Action:
    if not {"global", "add"} <= set(instruction.name):
        raise Fault(f"unknown: {instruction.text}")
    to, place, source = instruction.operands
    kind = KINDS[instruction.name[-1]]
    address, get = _address(place, np.uint64), getter(source, kind)

    def act(call: "Call", mask: Mask) -> None:
        at, value, before = address(call), get(call), np.zeros(THREADS, kind)
        for lane in _chosen(mask):
            memory, where = call.warp.global_memory(), at[lane : lane + 1]
            before[lane] = memory.load(where, kind)[0]
            memory.store(where, before[lane : lane + 1] + value[lane])
        put(call, to, before, mask)

    return act


def _shuffle(instruction: Instruction) -> Action:
    to, source, by, *_ = instruction.operands
    get, distance = getter(source, np.uint32), getter(by, np.uint32)
    way = instruction.name[2]
    if way not in ("bfly", "idx") or instruction.operands[3:] != ["31", "-1"]:
        raise Fault(f"unknown: {instruction.text}")

    def act(call: "Call", mask: Mask) -> None:
        index = distance(call).astype(np.int64)
        lanes = LANES ^ index if way == "bfly" else index % THREADS
        if mask is not None and not mask[lanes[mask]].all():
            raise Fault("a thread is asked that does not take part")
        put(call, to, get(call)[lanes], mask)

    return act


def _reduce(instruction: Instruction) -> Action:
    to, source, *_ = instruction.operands
    get = getter(source, KINDS[instruction.name[-1]])
    function = {"add": np.sum, "max": np.max, "min": np.min}[instruction.name[2]]

    def act(call: "Call", mask: Mask) -> None:
        _assert_all(mask)
        value = get(call)
        put(call, to, np.full(THREADS, function(value), value.dtype), mask)

    return act


def _tiles(instruction: Instruction) -> Action:
    """Move tiles of 8 x 16 bytes between shared memory and registers: 8 threads name their rows."""
    if "trans" in instruction.name:
        raise Fault(f"unknown: {instruction.text}")
    loads = instruction.name[0] == "ldmatrix"
    place, vector = instruction.operands[:: -1 if loads else 1]
    address, registers = _address(place, np.uint32), members(vector)
    gets = [] if loads else [getter(register, np.uint32) for register in registers]

    def act(call: "Call", mask: Mask) -> None:
        _assert_all(mask)
        warp, rows = call.warp, _used(address(call), 16, mask).reshape(-1, 8)
        for index, register in enumerate(registers):
            at = (rows[index][:, None] + 4 * np.arange(4)).ravel()
            if loads:
                put(call, register, warp.shared.load(at, np.uint32, warp.number), mask)
            else:
                warp.shared.store(at, gets[index](call), warp.number)

    return act


def _multiply_matrices(instruction: Instruction) -> Action:
    """Multiply float64 matrices whose entries lie in the registers of 32 threads."""
    shape = re.search(r"m(\d+)n8k(\d+)", instruction.text)
    if shape is None or instruction.name[-1] != "f64":
        raise Fault(f"unknown: {instruction.text}")
    m, k = map(int, shape.groups())
    result, *sources = (members(operand) for operand in instruction.operands)
    gets = [[getter(register, np.float64) for register in source] for source in sources]
    row, col, tall = LANES // 4, LANES % 4, m // 8

    def act(call: "Call", mask: Mask) -> None:
        _assert_all(mask)
        a, b, c = np.zeros((m, k)), np.zeros((k, 8)), np.zeros((m, 8))
        of_a, of_b, of_c = ([get(call) for get in some] for some in gets)
        for index, value in enumerate(of_a):
            a[row + 8 * (index % tall), 4 * (index // tall) + col] = value
        for index, value in enumerate(of_b):
            b[4 * index + col, row] = value
        for index, value in enumerate(of_c):
            c[row + 8 * (index // 2), 2 * col + index % 2] = value
        c += a @ b
        for index, register in enumerate(result):
            put(call, register, c[row + 8 * (index // 2), 2 * col + index % 2], mask)

    return act


def _assert_all(mask: Mask) -> None:
    if mask is not None:
        raise Fault("only some threads take part")


_MAKERS: dict[str, Callable[[Instruction], Action]] = {
    "ld": _load,
    "st": _store,
    "cp": _copy,
    "atom": _add_atomically,
    "shfl": _shuffle,
    "redux": _reduce,
    "ldmatrix": _tiles,
    "stmatrix": _tiles,
    "mma": _multiply_matrices,
}
