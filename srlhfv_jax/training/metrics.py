"""Writers of numbers: WORKDIR/metrics.jsonl, TensorBoard, WORKDIR/result.json.

metrics.jsonl holds nothing that depends on the clock, so that a resumed run writes the same file as an uninterrupted one; step
times go to TensorBoard and the progress line. Only the first process writes.
"""

import io
import json
import math
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srlhfv_jax import files
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import hosts

ADVICE = "remove that line"


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
        kept = [row for row in read(self.path) if row["step"] <= step]
        files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
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

    def sync(self) -> None:
        """Flush what was written to the disk, before a checkpoint that stands for it goes there."""
        if self._file is not None:
            os.fsync(self._file.fileno())

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
        files.write_text(path, json.dumps(value, indent=1) + "\n")


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """NumPy and device scalars as Python numbers; what is not finite as None, since JSON has no word for it."""
    plain = {}
    for name, value in values.items():
        if isinstance(value, (np.generic, np.ndarray, jax.Array)):
            value = value.item()
        plain[name] = None if isinstance(value, float) and not math.isfinite(value) else value
    return plain


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file, each with its "step"; a last one without its newline was torn by a kill and is left out.

    Raises:
        UserError: a line is damaged.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    rows, complete = [], io.BytesIO(content[: content.rfind(b"\n") + 1])
    for number, row in files.json_lines(complete, path, advice=ADVICE):
        if number != len(rows) + 1:
            raise UserError(f"{path}:{len(rows) + 1} is empty: {ADVICE}")
        files.take(row, "step", int, f"{path}:{number}", advice=ADVICE)
        rows.append(row)
    return rows
