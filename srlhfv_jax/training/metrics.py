"""Where the numbers go: WORKDIR/metrics.jsonl, TensorBoard, WORKDIR/result.json.

metrics.jsonl holds nothing that depends on the clock, so that a resumed run writes the same file as an uninterrupted one; step
times go to TensorBoard and the progress line. Only the first process writes.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srlhfv_jax.parallel import hosts


class Writer:
    """Appends one JSON object per logged step, "step" first; mirrors it to TensorBoard."""

    def __init__(self, workdir: Path, tensorboard: bool) -> None:
        self.path = Path(workdir) / "metrics.jsonl"
        self._first = hosts.process_index() == 0
        self._events = Path(workdir) / "tensorboard" if tensorboard and self._first else None
        self._file = None
        self._summary = None
        if self._first:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    def cut_back(self, step: int) -> None:
        """Forget what was written after `step` (0: everything), and a last line torn by a kill; later writes append."""
        self.close()
        if not self._first:
            return
        kept = [line for line in _lines(self.path) if json.loads(line)["step"] <= step]
        replace(self.path, "".join(line + "\n" for line in kept))
        self._file = self.path.open("a")
        if self._events is not None:
            from tensorboardX import SummaryWriter  # here, because it imports torch where that is installed: seconds

            self._summary = SummaryWriter(str(self._events), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the numbers of a step. A second call for the same step (an evaluation) adds a line of its own."""
        if not self._first:
            return
        if self._file is None:
            self.cut_back(step)
        self._file.write(json.dumps({"step": step, **_plain(values)}) + "\n")
        self._file.flush()  # survives a kill -9 of this process
        self._scalars(step, values)

    def timing(self, step: int, seconds: float) -> None:
        """Seconds of one step, for TensorBoard only."""
        self._scalars(step, {"seconds_per_step": seconds})

    def _scalars(self, step: int, values: dict[str, float]) -> None:
        if self._summary is not None:
            for name, value in values.items():
                self._summary.add_scalar(name, value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._summary is not None:
            self._summary.close()
            self._summary = None


def write_result(workdir: Path, result: dict[str, Any]) -> None:
    """Write WORKDIR/result.json atomically: one flat dict, sorted by name; a NaN becomes null."""
    write_json(Path(workdir) / "result.json", dict(sorted(_plain(result).items())))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, on the first process."""
    if hosts.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, json.dumps(value, indent=1) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, meets the old one or the new one, never half of it."""
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text)
    os.replace(beside, path)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """NumPy and device scalars as Python numbers; what is not finite as None, since JSON has no word for it."""
    plain = {}
    for name, value in values.items():
        if isinstance(value, (np.generic, np.ndarray, jax.Array)):
            value = value.item()
        plain[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return plain


def _lines(path: Path) -> list[str]:
    """The whole lines of a metrics file: a last line without its newline was torn by a kill."""
    if not path.exists():
        return []
    text = path.read_text()
    return text[: text.rfind("\n") + 1].splitlines()
