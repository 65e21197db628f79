"""The text of an optimized program (`compiled.as_text()`) as instructions by name, and how often its loops run.

Text is read because nothing else says what the compiler left of shapes, memory spaces and loops. `plan/count.py` counts in it.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {"pred": 1, "bf16": 2, "s4": 0.5, "u4": 0.5, "c64": 8, "c128": 16}  # others say their bits: f32, s8, f8e4m3fn

ARRAY = re.compile(r"\b([a-z][a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
HEADER = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
ASSIGNMENT = re.compile(r"\s+(ROOT )?%?([\w.-]+) = ")
PARENTHESIS = re.compile(r"[()]")
CALLED = re.compile(
    r"\b(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)=(\{[^}]*\}|%?[\w.-]+)"
)


class Array(NamedTuple):
    dtype: str
    dims: tuple[int, ...]
    on_chip: bool

    @property
    def size(self) -> float:
        """Bytes."""
        return math.prod(self.dims) * _item(self.dtype)


class Instruction(NamedTuple):
    name: str
    kind: str
    arrays: tuple[Array, ...]  # its value; several of a tuple
    operands: tuple[str, ...]
    literal: str  # what stands between the parentheses
    attributes: str
    root: bool

    @property
    def size(self) -> float:
        """Bytes."""
        return sum(array.size for array in self.arrays)

    @property
    def hbm(self) -> float:
        """Bytes that lie in HBM."""
        return sum(array.size for array in self.arrays if not array.on_chip)

    @property
    def called(self) -> tuple[str, ...]:
        """The computations that it names."""
        return tuple(name for found in CALLED.findall(self.attributes) for name in re.findall(r"[\w.-]+", found))


Computation = dict[str, Instruction]


def root(computation: Computation) -> Instruction:
    """The instruction whose value a computation gives."""
    return next(one for one in computation.values() if one.root)


def _item(dtype: str) -> float:
    if dtype in BYTES:
        return BYTES[dtype]
    bits = re.match(r"[fsu](\d+)", dtype)
    return int(bits[1]) / 8 if bits else 0.0  # tokens and opaque values have no size


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """All computations by name, and the name of the main one."""
    computations: dict[str, Computation] = {}
    main, current = "", {}
    for line in _joined(text):
        if header := HEADER.match(line):
            current = computations[header[2]] = {}
            main = header[2] if header[1] else main
        elif one := _instruction(line):
            current[one.name] = one
    return computations, main


def _joined(text: str) -> Iterator[str]:
    """Lines, where an attribute that spans several (the metadata of a kernel) is one with its instruction."""
    held = ""
    for line in text.splitlines():
        if ASSIGNMENT.match(line) or HEADER.match(line) or line in ("", "}"):
            yield held
            held = line
        else:
            held += line
    yield held


def _instruction(line: str) -> Instruction | None:
    match = ASSIGNMENT.match(line)
    if match is None:
        return None
    at = match.end()
    ends = _closed(line, at) if line[at] == "(" else line.index(" ", at)
    opened = line.index("(", ends)
    closed = _closed(line, opened)
    value, inside = line[at:ends], line[opened + 1 : closed - 1]
    arrays = tuple(
        Array(dtype, tuple(int(size) for size in dims.split(",") if size), bool(re.search(r"S\([1-9]", layout)))
        for dtype, dims, layout in ARRAY.findall(value)
    )
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
    return Instruction(match[2], line[ends:opened].strip(), arrays, operands, inside, line[closed:], bool(match[1]))


def _closed(line: str, opened: int) -> int:
    """The place behind the parenthesis that closes the one at `opened`."""
    depth = 0
    for found in PARENTHESIS.finditer(line, opened):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.end()
    return len(line)


def trips(computations: dict[str, Computation], computation: Computation, loop: Instruction) -> int | None:
    """Number of times a loop's body runs; None if nothing says so."""
    known = re.search(r'known_trip_count"?:?=?\{"?n"?:"?(\d+)', loop.attributes)
    if known:
        return int(known[1])
    body, condition = (re.search(rf"{word}=%?([\w.-]+)", loop.attributes)[1] for word in ("body", "condition"))
    test, scope = root(computations[condition]), computations[condition]
    while test.kind in ("fusion", "bitcast", "copy"):
        if test.kind == "fusion":
            scope = computations[test.called[0]]
            test = root(scope)
        else:
            test = scope[test.operands[0]]
    if test.kind != "compare" or "direction=LT" not in test.attributes:
        return None
    start = computation.get(loop.operands[0])
    first, bound = (_constant(computations[condition], scope, name, start, computation) for name in test.operands)
    step = _step(computations[body], computations[condition])
    return None if bound is None else math.ceil((bound - (first or 0)) / step)


def _constant(
    condition: Computation, scope: Computation, name: str, start: Instruction | None, outside: Computation
) -> int | None:
    """A number that a condition compares: a literal, or what a loop's value starts with."""
    instruction = scope[name]
    if instruction.kind == "parameter" and scope is not condition:  # of a fusion: the same constant outside of it
        caller = root(condition)
        instruction = condition[caller.operands[int(instruction.literal)]]
    if instruction.kind in ("copy", "bitcast"):
        return _constant(condition, scope, instruction.operands[0], start, outside)
    if instruction.kind == "get-tuple-element" and start is not None and start.kind == "tuple":
        instruction = outside.get(start.operands[int(re.search(r"index=(\d+)", instruction.attributes)[1])], instruction)
        while instruction.kind in ("copy", "bitcast") and instruction.operands[0] in outside:
            instruction = outside[instruction.operands[0]]
    return (
        int(instruction.literal) if instruction.kind == "constant" and instruction.literal.strip().lstrip("-").isdigit() else None
    )


def _step(body: Computation, condition: Computation) -> int:
    """Step of the loop's counter: 1, unless the compiler unrolled the loop."""
    read = next((one for one in condition.values() if one.kind == "get-tuple-element"), None)
    value = root(body)
    if read is None or value.kind != "tuple":
        return 1
    grown = body.get(value.operands[int(re.search(r"index=(\d+)", read.attributes)[1])])
    if grown is None or grown.kind != "add":
        return 1
    literals = [body[name].literal for name in grown.operands if name in body and body[name].kind == "constant"]
    return max(int(literals[0]), 1) if literals and literals[0].strip().isdigit() else 1
