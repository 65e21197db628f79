"""Functions of a run compiled from shapes, and what the compiler says of the memory of each: the parts of a `Plan`."""

import re
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from srlhfv_jax.errors import UserError
from srlhfv_jax.plan import count as work, shapes
from srlhfv_jax.rollout import layout


class Compiled(NamedTuple):
    """One function on one device."""

    name: str
    seconds: float  # of compiling
    peak: int  # bytes: arguments + outputs - aliased + temporaries
    arguments: int  # bytes
    temporaries: int
    beside: int  # bytes of the run's trees that are no arguments, and resident all the same
    fits: bool
    work: work.Counted | None  # None: the compiler refused, and there is no program


class Plan(NamedTuple):
    """A run on one device: bytes of its trees, and its functions in the order in which they run."""

    state: dict[str, int]
    compiled: list[Compiled]
    kv_copies: int = 1  # devices that hold each key-value head in a rollout, because tensor does not divide them


def load(trees: int, limit: int) -> Compiled:
    """All trees at once, which is how they are loaded and compared."""
    return Compiled("load", 0.0, trees, trees, 0, 0, trees <= limit, work.Counted((), 0))


def reshard(moves: Sequence[tuple[Any, Any]], everything: int, limit: int) -> Compiled:
    """Moving the policy's leaves to where a rollout reads them, one after the other, as if it were one function.

    Beside the run's trees there are all copies at the end, and while a leaf moves its temporaries.
    """
    once = {}
    for x, want in dict.fromkeys(moves):
        once[x, want], _ = compile_function("reshard", layout.mover(want.dtype, want.sharding), 0, limit, 1, x)
    before, after = (sum(map(shapes.size, side)) for side in zip(*moves))
    temporaries = max(one.temporaries for one in once.values())
    peak, seconds = before + after + temporaries, sum(one.seconds for one in once.values())
    fits = all(one.fits for one in once.values()) and everything + after + temporaries <= limit
    counted = None
    if all(one.work is not None for one in once.values()):
        parts = tuple(part for move in moves for part in once[move].work.parts)
        counted = work.Counted(parts, 0)
    return Compiled("reshard", seconds, peak, before, temporaries, everything - before, fits, counted)


# What the compiler says of a program that does not fit: of all it needs, or of temporaries, which come on top of arguments.
ALL = re.compile(r"Used ([\d.]+)([KMGT]) of [\d.]+[KMGT] hbm")
TEMPORARIES = re.compile(r"required for HLO temporaries \(([\d.]+)([KMGT])\) exceeds")


def compile_function(name: str, function: Callable, beside: int, limit: int, loop: int, *arguments: Any) -> tuple[Compiled, Any]:
    """Compile one function, whose loop without a constant bound runs `loop` times; gives what it would return, where its
    out_shardings say."""
    began = time.monotonic()
    lowered = function.lower(*arguments)
    outputs = lowered.out_info
    try:
        done = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        match = TEMPORARIES.search(str(error)) or ALL.search(str(error))
        if match is None:
            raise UserError(f"the TPU compiler refuses {name}: {str(error).strip().splitlines()[0]}") from error
        said, size = int(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1)), sum(map(shapes.size, arguments))
        peak = said + size if match.re is TEMPORARIES else said
        return Compiled(name, time.monotonic() - began, peak, size, peak - size, beside, False, None), outputs
    seconds = time.monotonic() - began
    memory = done.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    counted = work.count(_text(lowered, done), loop)
    sizes = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Compiled(name, seconds, peak, *sizes, beside, peak + beside <= limit, counted), outputs


def _text(lowered: jax.stages.Lowered, compiled: jax.stages.Compiled) -> str:
    """The optimized program. jaxlib 0.10.2 cannot read every program of a newer libtpu (async slices on v6e); the compiler then
    writes it to a file, for which it compiles again."""
    try:
        return compiled.as_text()
    except jax.errors.JaxRuntimeError:
        with tempfile.TemporaryDirectory() as folder:
            lowered.compile(compiler_options={"xla_dump_to": folder, "xla_dump_hlo_as_text": "True"})
            return next(Path(folder).glob("*.after_optimizations.txt")).read_text()
