"""The benchmarks by name, and the sets of them that configs/benchmark.py offers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.suites import (
    beavertails,
    figstep,
    mm_safetybench,
    mmsafe_po,
    mmsafeaware,
    mssbench,
    siuo,
    vlguard,
    xstest,
)
from srlhfv_jax.evaluation.suites.case import Read, id_text

READERS: dict[str, Callable[..., Read]] = {
    "beavertails_v": beavertails.beavertails_v,
    "pku_saferlhf": beavertails.pku_saferlhf,
    "mm_safetybench": mm_safetybench.read,
    "vlguard": vlguard.read,
    "siuo": siuo.generation,
    "siuo_mcq": siuo.multiple_choice,
    "mmsafeaware": mmsafeaware.read,
    "xstest": xstest.read,
    "figstep": figstep.read,
    "mssbench": mssbench.read,
    "mmsafe_po": mmsafe_po.read,
}
FOLDERS = {"siuo_mcq": "siuo"}  # where the folder has another name than the benchmark


def read(name: str, root: Path, *allowed: Path) -> Read:
    """A benchmark from ROOT/NAME, whose links may also lead to the folders `allowed`.

    Raises:
        UserError: an unknown name, no such folder, or no usable row in it.
    """
    if name not in READERS:
        raise UserError(f"there is no benchmark {name!r}: choose from {', '.join(READERS)}")
    folder = root / FOLDERS.get(name, name)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: unpack {name} there as it is published (the reader's docstring shows it)")
    benchmark = READERS[name](folder, *allowed)
    if not benchmark.cases:
        dropped = ", ".join(f"{reason} {count}" for reason, count in benchmark.drops.most_common()) or "it is empty"
        raise UserError(f"{folder}: no row of {name} can be used ({dropped})")
    return benchmark


def case_id(benchmark: str, value: Any) -> str | None:
    """The id of the case that somebody else's file means by this value, text or number; None where it is no id."""
    name = id_text(value)
    return xstest.plain_id(name) if name is not None and benchmark == "xstest" else name
