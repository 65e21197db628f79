"""What a workdir holds: final numbers, settings, the metrics of each stage, sample answers, score distributions.

A pipeline's workdir has one folder per stage; the workdir of a single stage is read the same way. A half-written last line of a
JSONL file (a killed run) is skipped; anything else that is damaged is a UserError naming file and line.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srlhfv_jax.errors import UserError

PLACES = ("metrics.jsonl", "*/metrics.jsonl", "*/*/metrics.jsonl")  # not deeper: checkpoints have very many files
POINTS = 800  # longest series that is drawn; longer ones are averaged down to it
KINDS = ("sft", "scores", "ppo", "other")  # in the order of the pipeline


class Stage(NamedTuple):
    """One metrics.jsonl."""

    name: str  # folder relative to the workdir
    kind: str  # of KINDS
    rows: tuple[dict[str, Any], ...]
    config: dict[str, Any]
    result: dict[str, Any]


class Workdir(NamedTuple):
    path: Path
    result: dict[str, Any]
    config: dict[str, Any]
    stages: tuple[Stage, ...]
    samples: tuple[dict[str, Any], ...]
    distributions: dict[str, Any]


def read(path: Path) -> Workdir:
    """Read everything the report can show.

    Raises:
        UserError: no such folder, nothing to report on in it, or a damaged file.
    """
    if not path.is_dir():
        raise UserError(f"expected --workdir to be the folder of a run, got {str(path)!r}, which does not exist")
    found = [file for pattern in PLACES for file in sorted(path.glob(pattern))]
    stages = sorted((_stage(path, file) for file in found), key=lambda stage: (KINDS.index(stage.kind), stage.name))
    work = Workdir(
        path=path,
        result=_json(path / "result.json"),
        config=_json(path / "config.json"),
        stages=tuple(stages),
        samples=tuple(_jsonl(path / "samples.jsonl")),
        distributions=_json(path / "score_distributions.json"),
    )
    if not (work.result or work.stages or work.samples):
        raise UserError(
            f"expected result.json, metrics.jsonl or samples.jsonl in {path}, got none; run a stage with this --workdir first"
        )
    return work


def series(stage: Stage, key: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of the rows that have a finite number under `key`; at most POINTS of them, neighbours averaged."""
    pairs = [(row["step"], row[key]) for row in stage.rows if _number(row.get(key)) and _number(row.get("step"))]
    steps, values = np.array(pairs, np.float64).reshape(-1, 2).T
    if len(steps) > POINTS:
        chunks = np.array_split(np.arange(len(steps)), POINTS)
        steps, values = (np.array([column[chunk].mean() for chunk in chunks]) for column in (steps, values))
    return steps, values


def has(stage: Stage, *keys: str) -> bool:
    """Whether the stage logged any of the keys as a number."""
    return any(_number(row.get(key)) for key in keys for row in stage.rows)


def _stage(root: Path, file: Path) -> Stage:
    rows = tuple(_jsonl(file))
    folder = file.parent
    name = str(folder.relative_to(root)) if folder != root else folder.resolve().name
    return Stage(name, _kind(rows), rows, _json(folder / "config.json"), _json(folder / "result.json"))


def _kind(rows: tuple[dict[str, Any], ...]) -> str:
    keys = {key for row in rows for key in row}
    if keys & {"lambda", "kl"}:
        return "ppo"
    if keys & {"reward_accuracy", "cost_accuracy"}:
        return "scores"
    return "sft" if "loss" in keys else "other"


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); write it again by running its command") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold one JSON object, got {type(value).__name__}")
    return value


def _jsonl(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    lines = path.read_text("utf-8", errors="replace").split("\n")
    rows = []
    for index, line in enumerate(lines):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if index == len(lines) - 1:  # no newline after it: the writer was stopped in the middle
                break
            raise UserError(f"{path} line {index + 1} is not valid JSON ({error}); remove that line") from error
        if not isinstance(row, dict):
            raise UserError(f"{path} line {index + 1} must be a JSON object, got {type(row).__name__}")
        rows.append(row)
    return rows


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
