"""Take PTX apart."""

import re
from typing import NamedTuple


class Fault(Exception):
    """What a GPU would not do, or not always do alike; or what is unknown here."""


class Instruction(NamedTuple):
    """One line of a function."""

    text: str
    name: tuple[str, ...]
    """Such as ("ld", "global", "b32")."""
    operands: list[str]
    guard: str | None
    """The register that says which threads run it; None for all."""
    unless: bool
    """Whether these are the threads for which it is false."""


class Function(NamedTuple):
    """A kernel, or what it calls."""

    parameters: dict[str, int]
    """How many bits each has."""
    instructions: list[Instruction]
    labels: dict[str, int]


class Module(NamedTuple):
    """What Triton compiles at once."""

    functions: dict[str, Function]
    kernel: str
    constants: dict[str, bytes]


_HEAD = re.compile(r"(?:\.visible )?\.(entry|func)\s+(?:\([^)]*\)\s*)?([\w$]+)")
_PARAMETER = re.compile(
    r"\.param\s+\.[a-z](\d+)\s+(?:\.ptr\s+(?:\.\w+\s+)?(?:\.align \d+\s+)?)?([\w$]+)"
)
_CONSTANT = re.compile(r"\.global \.align \d+ \.b8 ([\w$]+)\[\d+\] = \{(.*)\};")
# Half of a register, of which the other half is thrown away.
_HALF = re.compile(r"\{ \.reg \.b32 (\w+); (mov[^;]*;) \}")


def read(text: str) -> Module:
    """Return the functions of a module."""
    text = re.sub(r"//[^\n]*", "", text)
    text = _HALF.sub(lambda m: re.sub(rf"\b{m[1]}\b", "_", m[2]), text)
    lines = [line for line in map(str.strip, text.splitlines()) if line]
    functions, kernel, constants = {}, "", {}
    at = 0
    while at < len(lines):
        if found := _CONSTANT.match(lines[at]):
            constants[found[1]] = bytes(map(int, found[2].split(",")))
        elif found := _HEAD.match(lines[at]):
            start = at
            while lines[at] != "{" and not lines[at].endswith(";"):
                at += 1
            # Otherwise it is only declared.
            if lines[at] == "{":
                head = " ".join(lines[start:at])
                parameters = {name: int(bits) for bits, name in _PARAMETER.findall(head)}
                body, at = _body(lines, at + 1)
                functions[found[2]] = Function(parameters, *body)
                kernel = found[2] if found[1] == "entry" else kernel
        at += 1
    return Module(functions, kernel, constants)


def _body(lines: list[str], at: int) -> tuple[tuple[list[Instruction], dict[str, int]], int]:
    """Return instructions and labels up to the end of a function, and where it ends."""
    instructions, labels, depth = [], {}, 1
    while depth:
        line = lines[at]
        at += 1
        if line in ("{", "}"):
            depth += 1 if line == "{" else -1
            continue
        for part in filter(None, map(str.strip, line.split(";"))):
            if found := re.match(r"([\w$]+):\s*(.*)", part):
                labels[found[1]], part = len(instructions), found[2]
            if part.startswith((".local", ".shared")):
                raise Fault(f"unknown: {part}")
            if part.startswith(("{", "}")):
                # Of a call: registers of a scope of their own would be those of its surroundings.
                part = part.strip("{} ")
            if part and not part.startswith("."):
                instructions.append(_instruction(part))
    return (instructions, labels), at - 1


def _instruction(text: str) -> Instruction:
    found = re.match(r"(?:@(!?)(%p\d+)\s+)?([\w.:]+)\s*(.*)", text, re.S)
    if found is None:
        raise Fault(f"unknown: {text}")
    name = tuple(found[3].replace("::", ".").split("."))
    return Instruction(text, name, parts_of(found[4]), found[2], bool(found[1]))


def parts_of(text: str) -> list[str]:
    """Split at commas that stand in no brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "{[(") - (sign in "}])")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def members(text: str) -> list[str]:
    """Return the registers of a vector, such as {%r1, %r2}, or of a single one."""
    return parts_of(text.strip("{} "))
