"""Writers of numbers: WORKDIR/metrics.jsonl and its mirrors (trackers.py), WORKDIR/result.json.

metrics.jsonl holds nothing that depends on the clock, so that a resumed run writes the same file as an uninterrupted one; step
times go to trackers and the progress line. Only the first process writes.
"""

import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from srlhfv_jax import files
from srlhfv_jax.errors import UserError
from srlhfv_jax.parallel import hosts
from srlhfv_jax.training.background import Background
from srlhfv_jax.training.trackers import EXTRAS, Record, Run, Sample, make, run_id

ADVICE = "remove that line"


class Jsonl:
    """WORKDIR/metrics.jsonl as a tracker: one JSON object per logged step, "step" first. Unlike the others it must not fail."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = None

    def start(self, run: Run) -> None:
        """Forget what was written after `run.step` (0: everything), and a last line torn by a kill; later lines are appended."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read(self.path) if row["step"] <= run.step] if run.step else []
        files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self._file = self.path.open("a")

    def log(self, step: int, record: Record) -> None:
        self._file.write(json.dumps({"step": step, **_plain(dict(record.numbers))}) + "\n")
        self._file.flush()  # survives a kill -9 of this process

    def sync(self) -> None:
        """Flush what was written to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class Writer:
    """Writes a run's numbers to metrics.jsonl, and mirrors them to trackers. First process only."""

    def __init__(
        self, workdir: Path, names: Sequence[str] = (), *, project: str = "", settings: Mapping[str, Any] | None = None
    ) -> None:
        """
        Args:
            names: of trackers (`trackers.make`).
            project, settings: what they are told of the run.
        """
        self.path = Path(workdir) / "metrics.jsonl"
        self._first = hosts.process_index() == 0
        self._names = tuple(names) if self._first else ()
        self._about = {"project": project, "settings": settings or {}}
        self._jsonl = Jsonl(self.path)
        self._trackers: list[Background] = []
        self._started = False
        if self._first:
            self.path.parent.mkdir(parents=True, exist_ok=True)

    @property
    def mirrored(self) -> bool:
        """Whether this process has trackers, which show histograms too."""
        return bool(self._names)

    def cut_back(self, step: int) -> None:
        """Forget what was written after `step` (0: everything), and a last line torn by a kill; later writes append."""
        self.close()
        if not self._first:
            return
        workdir = self.path.parent
        self._jsonl.start(Run(workdir, step))
        if self._names:
            known = run_id(workdir, step) if set(self._names) & set(EXTRAS) else ""
            run = Run(workdir, step, id=known, **self._about)
            self._trackers = [Background(name, make(name), run) for name in self._names]
        self._started = True

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the numbers of a step. A second call for the same step (an evaluation) adds a line of its own."""
        if not self._first:
            return
        if not self._started:
            self.cut_back(step)
        self._jsonl.log(step, Record(values))
        self._mirror(step, Record(values))

    def histograms(self, step: int, values: dict[str, np.ndarray]) -> None:
        """Values of each answer of a step, [B] by name, for trackers only."""
        if values:
            self._mirror(step, Record(histograms=values))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Answers to the same prompts as before, for trackers only."""
        self._mirror(step, Record(samples=samples))

    def sync(self) -> None:
        """Flush what was written to the disk, before a checkpoint that stands for it goes there."""
        self._jsonl.sync()

    def timing(self, step: int, seconds: float) -> None:
        """Seconds of one step, for trackers only."""
        self._mirror(step, Record({"seconds_per_step": seconds}))

    def _mirror(self, step: int, record: Record) -> None:
        for tracker in self._trackers:
            tracker.log(step, record)

    def close(self) -> None:
        self._jsonl.close()
        for tracker in self._trackers:
            tracker.close()
        self._trackers, self._started = [], False


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
