"""Prompts that a checkpoint's training has read, from the settings that its workdir and those it started from have kept.

A certificate is about prompts that the policy does not depend on: what it, or what it was trained against, learned from or was chosen
by (validation, held-out rows) says nothing of new prompts.
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from srlhfv_jax import files
from srlhfv_jax.config import DataConfig, GuardConfig, PPOLagConfig, PreferenceConfig, stored
from srlhfv_jax.config.stored import Trained
from srlhfv_jax.data import images, sources
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError, short
from srlhfv_jax.hf import hub
from srlhfv_jax.parallel import hosts


class Source(NamedTuple):
    """Rows that a run has read."""

    workdir: Path
    setting: str  # "config.data.path"
    data: DataConfig


class Overlap(NamedTuple):
    """A source that has some of the prompts."""

    source: Source
    rows: tuple[int, ...]  # their numbers among the prompts


class Record(NamedTuple):
    """The runs that a checkpoint comes from."""

    sources: tuple[Source, ...]
    unknown: tuple[str, ...]  # what they started from and is no longer there, so that nothing is known of its rows


def workdir_of(path: str | Path) -> Path | None:
    """The workdir of the stage that made a checkpoint: the folder itself, or the one that an export lies in; None: there is none."""
    for folder in (Path(path), Path(path).absolute().parent):
        if files.exists(folder / "config.json") and _settings(folder) is not None:
            return folder
    return None


def record(*paths: str) -> Record:
    """Every source of the runs that made these checkpoints, and those they started from, and so on."""
    by_place: dict[tuple, Source] = {}
    unknown: list[str] = []
    waiting, visited = [path for path in paths if path], set()
    while waiting:
        path = waiting.pop()
        workdir = workdir_of(path)
        if workdir is None:
            if not hub.is_model_id(path) and not files.exists(path):
                unknown.append(path)
            continue
        if workdir.resolve() in visited:
            continue
        visited.add(workdir.resolve())
        settings = _settings(workdir)
        for source in _sources(workdir, settings):
            by_place.setdefault((source.data.path, source.data.split), source)
        waiting += [start for start in _starts(settings) if start]
    return Record(tuple(by_place.values()), tuple(unknown))


def overlaps(prompts: Sequence[Example], known: Record) -> tuple[list[Overlap], list[str]]:
    """Sources that have some of the prompts, and the reasons why others cannot be read, one line each."""
    keys = [prompt_key(example) for example in prompts]
    overlapping, unreadable = [], []
    for source in known.sources:
        place = f"{source.workdir} ({source.setting}={short(source.data.path)})"
        hosts.say(f"certify: reading the prompts of {place}")
        try:
            rows = {
                prompt_key(example) for example in sources.load_examples(dataclasses.replace(source.data, decode_first=False))
            }
        except UserError as error:
            unreadable.append(f"{place}: {error}")
            continue
        shared = tuple(row for row, key in enumerate(keys) if key in rows)
        if shared:
            overlapping.append(Overlap(source, shared))
    return overlapping, unreadable


def prompt_key(example: Example) -> bytes:
    """A digest of a row's pictures, turns and question; answers and labels do not count."""
    asked = [tuple(turn) for turn in example.history], example.question.strip()
    return hashlib.sha256(repr(([images.digest(image) for image in example.images], asked)).encode()).digest()


def _settings(folder: Path) -> Trained | None:
    """The settings of the stage whose workdir this is; None: it is none."""
    path = folder / "config.json"
    try:
        return stored.read(files.read_json(path), str(path))
    except UserError:
        return None


def _sources(workdir: Path, settings: Trained) -> Iterator[Source]:
    """The rows that a stage learned from, and those that its result was chosen by."""
    places = {"config.data.path": (settings.data.path, settings.data.split)}
    if isinstance(settings, PPOLagConfig):
        places["config.validation.path"] = (settings.validation.path, settings.validation.split)
        if settings.ptx.coef:
            places["config.ptx.path"] = (settings.ptx.path, settings.ptx.split)
    else:
        places["config.evaluation"] = (settings.evaluation, settings.evaluation_split)
    if isinstance(settings, PreferenceConfig):
        places["config.replay.path"] = (settings.replay.path, settings.replay.split)
    if isinstance(settings, GuardConfig):
        places["config.calibration"] = (settings.calibration, settings.calibration_split)
        places["config.pairs.path"] = (settings.pairs.path, settings.pairs.split)
        places["config.pairs.evaluation"] = (settings.pairs.evaluation, settings.pairs.evaluation_split)
    for setting, (path, split) in places.items():
        if path:
            yield Source(workdir, setting, dataclasses.replace(settings.data, path=path, split=split))


def _starts(settings: Trained) -> tuple[str, ...]:
    """The checkpoints that a stage read."""
    if isinstance(settings, PPOLagConfig):
        return (settings.policy, settings.reference, settings.scorer, settings.reward, settings.cost)
    if isinstance(settings, PreferenceConfig):
        margin, scores = settings.margin, settings.scores
        own = (settings.init, settings.reference_path, margin.path, margin.reference)
        return (*own, scores.scorer, scores.helpful, scores.harmless, settings.tokens.scorer)
    return (settings.init,)
