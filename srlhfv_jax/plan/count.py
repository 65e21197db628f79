"""Work of a compiled program, counted in its optimized HLO (`plan/hlo.py`): operations, memory traffic and collectives.

XLA's own `cost_analysis` counts the body of a loop once. Here a body counts as often as it runs: the bound of a scan stands in
its condition; that of a loop which may end early does not, and is given by the caller. Everything is per device, as the text is.

    operations    of matrix products: 2 x multiplications that are not with padding; of a kernel, what its author declares
    traffic       bytes that each instruction, or fusion of them, reads and writes in HBM; arrays in on-chip memory are free; of a
                  large array that is sliced or updated in place only the slice counts
    collectives   how often, and how many bytes each device sends over its links (a ring of n: n-1 of n parts, twice for all-reduce)
"""

import functools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from srlhfv_jax.plan import hlo
from srlhfv_jax.plan.hlo import Array, Computation, Instruction

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota"}
FREE |= {"while", "call", "conditional", "async-start", "async-update", "optimization-barrier", "add-dependency"}
SLICES = {"dynamic-slice", "slice", "gather"}
LAZY = {"bitcast", "convert", "reshape", "transpose", "copy"}  # inside a fusion: computed where it is read


class Collective(NamedTuple):
    kind: str
    count: float
    sent: float  # bytes


class Part(NamedTuple):
    """One computation outside of fusions: the program's main one, or the body or condition of a loop. Numbers of one run of it."""

    name: str
    times: float
    flops: float
    traffic: float
    collectives: tuple[Collective, ...]


class Counted(NamedTuple):
    parts: tuple[Part, ...]
    unknown_kernels: int  # calls of kernels that declare no operations: those are missing

    @property
    def flops(self) -> float:
        return sum(part.times * part.flops for part in self.parts)

    @property
    def traffic(self) -> float:
        return sum(part.times * part.traffic for part in self.parts)

    def collectives(self) -> dict[str, Collective]:
        """Link traffic by kind; kinds that do not occur are left out."""
        by_kind: dict[str, Collective] = {}
        for part in self.parts:
            for one in part.collectives:
                before = by_kind.get(one.kind, Collective(one.kind, 0, 0))
                count, sent = (part.times * value for value in (one.count, one.sent))
                by_kind[one.kind] = Collective(one.kind, before.count + count, before.sent + sent)
        return by_kind

    def seconds(self, flops: float, hbm: float, ici: float) -> float:
        """A roofline at these peak rates (per second): in each part the products hide the traffic or the other way round;
        what goes over links is hidden by nothing, and finds all of them free. Latencies are left out."""
        total = 0.0
        for part in self.parts:
            total += part.times * max(part.flops / flops, part.traffic / hbm)
            total += part.times * sum(one.sent for one in part.collectives) / ici
        return total


def count(text: str, dynamic: int = 1) -> Counted:
    """Count a program given as `compiled.as_text()`.

    Args:
        dynamic: how often the body of a loop without a constant bound runs.
    """
    computations, main = hlo.parse(text)
    partitions = re.search(r"num_partitions=(\d+)", text.partition("\n")[0])
    return _Counter(computations, int(partitions[1]) if partitions else 1, dynamic).run(main)


class _Counter:
    """The walk over one program; holds what was found so far."""

    def __init__(self, computations: dict[str, Computation], devices: int, dynamic: int) -> None:
        self.computations, self.devices, self.dynamic = computations, devices, dynamic
        self.parts: list[Part] = []
        self.unknown_kernels = 0

    def run(self, main: str) -> Counted:
        self._visit(main, 1)
        return Counted(tuple(self.parts), self.unknown_kernels)

    def _visit(self, name: str, times: float) -> None:
        """Count one computation, and those that it runs."""
        computation = self.computations[name]
        flops, traffic, collectives, fused = 0.0, 0.0, [], set()
        for instruction in computation.values():
            if instruction.kind == "while":
                body, condition = (re.search(rf"{word}=%?([\w.-]+)", instruction.attributes)[1] for word in ("body", "condition"))
                trips = hlo.trips(self.computations, computation, instruction)
                for inner in (body, condition):
                    self._visit(inner, times * (self.dynamic if trips is None else trips))
            elif instruction.kind in ("call", "async-start"):
                for inner in instruction.called:
                    self._visit(inner, times)
            elif instruction.kind == "conditional":
                self._visit(max(instruction.called, key=lambda inner: len(self.computations[inner])), times)
            else:
                flops += self._flops(computation, instruction)
                collectives += self._collectives(computation, instruction, fused)
                traffic += _Traffic(self.computations).of(computation, instruction)
        self.parts.append(Part(name, times, flops, traffic, tuple(collectives)))

    def _flops(self, computation: Computation, instruction: Instruction) -> float:
        if instruction.kind == "dot":
            return _dot(computation, instruction)
        if instruction.kind == "convolution":
            return _convolution(computation, instruction)
        if instruction.kind == "fusion":
            inner = self.computations[instruction.called[0]]
            return sum(self._flops(inner, other) for other in inner.values())
        if instruction.kind == "custom-call" and "tpu_custom_call" in instruction.attributes:
            declared = re.search(r'"cost_estimate":\{"flops":"?(\d+)', instruction.attributes)
            self.unknown_kernels += declared is None
            return 0.0 if declared is None else float(declared[1])
        return 0.0

    def _collectives(self, computation: Computation, instruction: Instruction, fused: set) -> Iterator[Collective]:
        """A collective that runs beside others is seen in several fusions, under one channel: it counts where it is seen first."""
        kind = instruction.kind.removesuffix("-start")
        if kind in KINDS:
            yield Collective(
                kind,
                1,
                _sent(kind, sum(computation[name].size for name in instruction.operands), _group(instruction, self.devices)),
            )
        elif instruction.kind == "fusion":
            inner = self.computations[instruction.called[0]]
            scatters = "reduce-scatter" in instruction.called[0]  # a TPU's is an all-reduce, cut, in a fusion of this name
            for other in inner.values():
                for collective in self._collectives(inner, other, fused):
                    key = collective.kind, (re.search(r"channel_id=(\d+)", other.attributes) or [other.name])[0]
                    if key not in fused:
                        fused.add(key)
                        yield Collective("reduce-scatter", 1, collective.sent / 2) if scatters else collective


class _Traffic:
    """Bytes that instructions read and write in HBM."""

    def __init__(self, computations: dict[str, Computation]) -> None:
        self.computations = computations

    def of(self, computation: Computation, instruction: Instruction) -> float:
        if instruction.kind in FREE or instruction.kind.endswith("-done"):
            return 0.0
        operands = [computation[name] for name in instruction.operands if name in computation]
        if instruction.kind == "fusion":
            inner = self.computations[instruction.called[0]]
            read = sum(min(operand.hbm, self._read(inner, index)) for index, operand in enumerate(operands) if operand.hbm)
            return read + self._written(inner, hlo.root(inner), instruction.arrays)
        if instruction.kind in SLICES:
            return instruction.hbm + (instruction.size if operands[0].hbm else 0) + sum(operand.hbm for operand in operands[1:])
        if instruction.kind == "slice-start":  # ((operands), slice, context)
            moved = instruction.arrays[len(operands)]
            return (0 if moved.on_chip else moved.size) + (moved.size if operands[0].hbm else 0)
        if instruction.kind == "copy-start":  # (copy, operand, context)
            return sum(array.size for array in instruction.arrays[:2] if not array.on_chip)
        if instruction.kind == "dynamic-update-slice":
            return operands[1].hbm + (operands[1].size if instruction.hbm else 0)
        if instruction.kind == "scatter":
            return 3 * sum(operand.hbm for operand in operands[len(operands) // 2 + 1 :])
        if instruction.kind.removesuffix("-start") in KINDS:  # the value of a start repeats its operands
            return 2 * sum(operand.hbm for operand in operands)
        return instruction.hbm + sum(operand.hbm for operand in operands)

    def _read(self, inner: Computation, index: int) -> float:
        """Bytes that a fusion reads of its parameter: slices of it, if it is used in no other way."""
        for instruction in inner.values():
            if instruction.kind == "parameter" and instruction.literal.strip() == str(index):
                return self._uses(inner, instruction)
        return 0.0

    def _uses(self, inner: Computation, value: Instruction) -> float:
        total = 0.0
        for instruction in inner.values():
            for place in (place for place, name in enumerate(instruction.operands) if name == value.name):
                if instruction.kind in SLICES and place == 0:
                    total += instruction.size
                elif instruction.kind == "dynamic-update-slice" and place == 0:
                    pass  # in place
                elif instruction.kind in LAZY:
                    total += self._uses(inner, instruction)
                elif instruction.kind == "fusion":
                    total += self._read(self.computations[instruction.called[0]], place)
                elif instruction.kind == "tuple" or instruction.kind in KINDS or instruction.kind == "custom-call":
                    pass  # handed on; the collective itself counts where it is counted
                else:
                    return math.inf
        return total

    def _written(self, inner: Computation, root: Instruction, arrays: tuple[Array, ...]) -> float:
        """Bytes written by a fusion with this root and value."""
        if root.kind == "tuple":
            return sum(self._written(inner, inner[name], (array,)) for name, array in zip(root.operands, arrays))
        if root.kind == "parameter" or root.kind in KINDS or all(array.on_chip for array in arrays):
            return 0.0
        if root.kind == "dynamic-update-slice":
            return inner[root.operands[1]].size
        if root.kind in LAZY and root.operands[0] in inner:
            source = inner[root.operands[0]]
            if source.kind in LAZY or source.kind == "dynamic-update-slice":
                return self._written(inner, source, arrays)
        if root.kind == "fusion":
            deeper = self.computations[root.called[0]]
            return self._written(deeper, hlo.root(deeper), arrays)
        return sum(array.size for array in arrays if not array.on_chip)


def _dot(computation: Computation, instruction: Instruction) -> float:
    left = computation[instruction.operands[0]].arrays[0]
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    contracted = math.prod(left.dims[int(axis)] for axis in summed[1].split(",") if axis) if summed else 1
    return 2.0 * math.prod(instruction.arrays[0].dims) * contracted


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """Operations of a convolution, as TPUs call matrix products: batch axes come as spatial ones, dilated so that all but one of their products is padding."""
    left_labels, kernel_labels, out_labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes).groups()
    left, kernel = (computation[name].arrays[0].dims for name in instruction.operands[:2])
    out = instruction.arrays[0].dims
    window = dict(re.findall(r"(\w+)=([\w-]+)", (re.search(r"window=\{([^}]*)\}", instruction.attributes) or ("", ""))[1]))
    total = 2.0 * out[out_labels.index("b")] * out[out_labels.index("f")] * kernel[kernel_labels.index("i")]
    for axis in range(len(out) - 2):

        def value(word: str, default: str, axis=axis) -> str:
            return window[word].split("x")[axis] if word in window else default

        low = int(value("pad", "0_0").split("_")[0])
        total *= _products(
            left[left_labels.index(str(axis))],
            kernel[kernel_labels.index(str(axis))],
            out[out_labels.index(str(axis))],
            int(value("stride", "1")),
            low,
            int(value("lhs_dilate", "1")),
            int(value("rhs_dilate", "1")),
        )
    return total


@functools.lru_cache(maxsize=None)
def _products(left: int, kernel: int, out: int, stride: int, low: int, left_dilation: int, kernel_dilation: int) -> int:
    """Pairs of output and kernel positions along one axis that meet an element, not padding."""
    place = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * kernel_dilation - low
    return int(np.sum((place >= 0) & (place <= (left - 1) * left_dilation) & (place % left_dilation == 0)))


def _sent(kind: str, size: float, devices: int) -> float:
    """Bytes over the links of one device, of a collective whose operands have `size` bytes."""
    if kind == "collective-permute":
        return size
    parts = {"all-gather": devices - 1, "all-reduce": 2 * (devices - 1) / devices}
    return size * parts.get(kind, (devices - 1) / devices)


def _group(instruction: Instruction, devices: int) -> int:
    """Number of devices in one group of a collective; XLA writes groups in three ways."""
    named = re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", instruction.attributes)
    if named:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(part or sizes[axis]) for axis, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", named[2]))
    shaped = re.search(r"replica_groups=\[\d+,(\d+)\]", instruction.attributes)
    if shaped:
        return int(shaped[1])
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", instruction.attributes)
    return listed[1].count(",") + 1 if listed else devices
