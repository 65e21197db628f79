"""Content of a workdir: final numbers, settings, the metrics of each stage, sample answers, score distributions.

A pipeline's workdir has one folder per stage; the workdir of a single stage is read the same way. A half-written last line of a
JSONL file (a killed run) is skipped; anything else that is damaged is a UserError naming file and line.
"""

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import same_prompts
from srlhfv_jax.files import json_lines
from srlhfv_jax.guard.stage import GUARD
from srlhfv_jax.hf.weights import CALIBRATION
from srlhfv_jax.ppo_lag.stage import PPO_LAG
from srlhfv_jax.preference.stage import PREFERENCE
from srlhfv_jax.supervised.stages import STAGES as SUPERVISED

PLACES = ("metrics.jsonl", "*/metrics.jsonl", "*/*/metrics.jsonl")  # not deeper: checkpoints have very many files
POINTS = 800  # longest series that is drawn; longer ones are averaged down to it
STAGES = tuple(dict.fromkeys(stage.curves for stage in (*SUPERVISED, PREFERENCE, PPO_LAG, GUARD)))  # in the order of the pipeline
TELLING = STAGES[::-1]  # the first whose marks are there names a stage: a guard may train score heads too
KINDS = (*(stage.kind for stage in STAGES), "other")
_ROUND = re.compile(r"round(\d+)_(.+)")


class Stage(NamedTuple):
    """One metrics.jsonl."""

    name: str  # as the page calls it: the folder relative to the workdir, without the round where there is one alone
    kind: str  # of KINDS
    rows: tuple[dict[str, Any], ...]
    config: dict[str, Any]
    result: dict[str, Any]
    same_prompts: tuple[dict[str, Any], ...] = ()  # their answers over the steps


class Workdir(NamedTuple):
    path: Path
    result: dict[str, Any]
    config: dict[str, Any]
    stages: tuple[Stage, ...]
    samples: tuple[dict[str, Any], ...]
    distributions: dict[str, Any]
    calibration: dict[str, Any] = {}  # of `srlhfv calibrate`: of this workdir, or of the scorer that it exported

    @property
    def order(self) -> tuple[str, ...]:
        """Names of the policies in the order in which they were given: result.json is sorted, these files are not."""
        named = self.distributions.get("policies") or next((row.get("answers") for row in self.samples), None)
        return tuple(named) if isinstance(named, dict) else ()

    @property
    def by_oracle(self) -> bool:
        """Whether answers were judged by the task's own oracle; else by learned models."""
        return self.distributions.get("judge") == "oracle" or any(key.endswith(".evasion_rate") for key in self.result)


def read(path: Path) -> Workdir:
    """Read everything the report can show.

    Raises:
        UserError: no such folder, nothing to report on in it, or a damaged file.
    """
    if not path.is_dir():
        raise UserError(f"expected --workdir to be the folder of a run, got {str(path)!r}, which does not exist")
    logs = [file for pattern in PLACES for file in sorted(path.glob(pattern))]
    stages = sorted((_stage(path, file) for file in logs), key=lambda stage: (KINDS.index(stage.kind), stage.name))
    stages = [stage._replace(name=name) for stage, name in zip(stages, _names([stage.name for stage in stages]), strict=True)]
    work = Workdir(
        path=path,
        result=_json(path / "result.json"),
        config=_json(path / "config.json"),
        stages=tuple(stages),
        samples=tuple(_jsonl(path / "samples.jsonl")),
        distributions=_json(path / "score_distributions.json"),
        calibration=_json(path / CALIBRATION) or _json(path / "export" / CALIBRATION),
    )
    if not (work.result or work.stages or work.samples):
        raise UserError(
            f"expected result.json, metrics.jsonl or samples.jsonl in {path}, got none; run a stage with this --workdir first"
        )
    return work


def sources(path: Path) -> list[Path]:
    """The files that `read` reads, as far as they are there."""
    logs = [file for pattern in PLACES for file in path.glob(pattern)]
    folders = dict.fromkeys([path, *(file.parent for file in logs)])
    others = [folder / name for folder in folders for name in ("result.json", "config.json", same_prompts.FILE)]
    others += [path / name for name in ("samples.jsonl", "score_distributions.json", CALIBRATION, f"export/{CALIBRATION}")]
    return sorted({*logs, *(file for file in others if file.is_file())})


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
    asked = tuple(_jsonl(folder / same_prompts.FILE))
    return Stage(name, _kind(rows), rows, _json(folder / "config.json"), _json(folder / "result.json"), asked)


def _kind(rows: tuple[dict[str, Any], ...]) -> str:
    keys = {key for row in rows for key in row}
    return next((stage.kind for stage in TELLING if keys & stage.marks), "other")


def _names(folders: Sequence[str]) -> list[str]:
    """ "round1_ppo_lag" is "ppo_lag", as the policy that it trains is called; of several rounds "ppo_lag, round 2"."""
    rounds = [match for folder in folders if (match := _ROUND.fullmatch(folder))]
    several = len({match[1] for match in rounds}) > 1
    names = {match[0]: f"{match[2]}, round {match[1]}" if several else match[2] for match in rounds}
    taken = [folder for folder in folders if folder not in names]
    return [names[folder] if folder in names and names[folder] not in taken else folder for folder in folders]


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
    with path.open(encoding="utf-8", errors="replace") as lines:
        return [row for _, row in json_lines(lines, path, advice="remove that line", torn_end=True)]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
