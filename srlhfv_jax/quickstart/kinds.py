"""Kinds of methods: each is a function (pipeline, method, told) -> its stage, ready to run in a workdir.

on_pairs          `srlhfv preference` on the quickstart's pairs
on_blind_pairs    the same, and answers to grey pictures lose too
on_scored_pairs   the same, where a scorer says who wins, with the multiplier of `srlhfv dual`
on_tokens_of_pairs    the same, where a scorer says which tokens count
on_rows           `srlhfv sft` goes on with the supervised rows
on_mixed_rows     the same, with pairs among them
on_policy         `srlhfv ppo_lag` of the quickstart with other settings
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from srlhfv_jax.config import PPOLagConfig, PreferenceConfig, SFTConfig, to_dict
from srlhfv_jax.config.preference import NO_REFERENCE
from srlhfv_jax.configs import preference as presets
from srlhfv_jax.parsing import parse
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.preference import run as preference
from srlhfv_jax.quickstart.pipeline import Pipeline
from srlhfv_jax.supervised import sft

Numbers = Mapping[str, float]
Train = Callable[[Path], dict[str, float]]  # workdir -> numbers of the stage

SFT, SCORER = "sft", "round1_scores"  # steps of the quickstart that methods start from
SHARED = "compare.reference"  # what the reference says of all pairs
BLIND, ANSWERS = "compare.blind", "answers.jsonl"
STEPS = 0.27  # of the scorer's
SECTIONS = ("lora", "model", "mesh", "data", "optimizer", "checkpoint", "log")  # as the scorer's
MIXED_PAIRS = 0.1  # of mixed rows; the others are the supervised ones


class Method(NamedTuple):
    """One way to make the supervised policy safer, or more helpful."""

    stage: Callable[[Pipeline, "Method", Numbers], Train]  # of this file; the numbers are those of the steps before
    reads: str  # of the pairs, for people
    rate: float = 1.0  # learning rate, in those of the scorer; of a method on rows, in those of SFT
    changes: Mapping[str, Any] = {}  # of the preset; on rows, of config.targets
    preset: str = ""  # of configs/preference.py; "": the quickstart's own stage
    start: str = ""  # the method whose policy it goes on from; "": the supervised policy
    before: Mapping[str, Callable[[Pipeline, Path], dict[str, float]]] = {}  # "compare.{name}.STEP" -> what it goes on from
    after: Mapping[str, Callable[[Pipeline, str, "Method", Path, Path], dict[str, float]]] = {}  # ending of a step -> a measure
    shares: tuple[str, ...] = (SHARED,)  # steps whose seconds methods share evenly
    whole: tuple[str, ...] = ()  # steps of the quickstart whose seconds count as its own


def folder(pipeline: Pipeline, name: str) -> Path:
    """The workdir of a method."""
    return pipeline.workdir / f"compare.{name}"


def judged(pipeline: Pipeline, name: str, policy: Path) -> dict[str, float]:
    """The oracle's numbers of a method's policy on test prompts; a step of its own."""
    return pipeline.step(f"compare.{name}.judged", lambda _: pipeline.judge(policy, "test").metrics)


def on_pairs(pipeline: Pipeline, method: Method, told: Numbers) -> Train:
    """A preset of `srlhfv preference`."""
    return functools.partial(preference.run, _of_method(pipeline, method, {}))


def on_blind_pairs(pipeline: Pipeline, method: Method, told: Numbers) -> Train:
    """The same, and what was said to grey pictures loses too."""
    blind = {"blind": str(pipeline.workdir / BLIND / ANSWERS)}
    return functools.partial(preference.run, _of_method(pipeline, method, blind))


def on_scored_pairs(pipeline: Pipeline, method: Method, told: Numbers) -> Train:
    """The same, where the scorer says who wins, with the `multiplier` of the dual."""
    scores = {"scores.scorer": str(pipeline.workdir / SCORER), "scores.multiplier": told["multiplier"]}
    return functools.partial(preference.run, _of_method(pipeline, method, scores))


def on_tokens_of_pairs(pipeline: Pipeline, method: Method, told: Numbers) -> Train:
    """The same, where the scorer says which tokens count."""
    return functools.partial(preference.run, _of_method(pipeline, method, {"tokens.scorer": str(pipeline.workdir / SCORER)}))


def on_rows(pipeline: Pipeline, method: Method, told: Numbers) -> Train:
    """A quarter of the supervised stage once more, with the method's targets."""
    return functools.partial(sft.run, _supervised(pipeline, method))


def on_mixed_rows(pipeline: Pipeline, method: Method, told: Numbers) -> Train:
    """The same with pairs among the rows, whose answers stand one behind the other."""
    settings = _supervised(pipeline, method)
    path = f"{pipeline.workdir / 'pairs'}:{MIXED_PAIRS},{settings.data.path}:{1 - MIXED_PAIRS}"
    data = dataclasses.replace(settings.data, path=path, response_length=2 * settings.data.response_length)
    return functools.partial(sft.run, dataclasses.replace(settings, data=data))


def on_policy(pipeline: Pipeline, method: Method, told: Numbers) -> Train:
    """The constrained stage with the method's changes."""
    return functools.partial(ppo_lag.run, constrained_with(pipeline, method.changes))


def constrained_with(pipeline: Pipeline, changes: Mapping[str, Any]) -> PPOLagConfig:
    """The quickstart's constrained stage with other settings, from its supervised policy and its first scorer."""
    stage = pipeline.constrained(pipeline.settings.ppo_lag, pipeline.workdir / SFT, pipeline.workdir / SCORER)
    config = ConfigDict(to_dict(stage))
    with config.unlocked():
        config.update_from_flattened_dict(dict(changes))
    return parse(PPOLagConfig, config)


def of_all_pairs(pipeline: Pipeline, workdir: Path) -> dict[str, float]:
    """A stage of no step that reads every pair, ties as well: what the reference says of them is kept for all methods."""
    scorer = {"scores.scorer": str(pipeline.workdir / SCORER)}
    settings = on_pairs_from(pipeline, "mocan", scorer, pipeline.workdir / SFT, rate=1.0)
    return preference.run(dataclasses.replace(settings, steps=0), workdir)


def on_pairs_from(pipeline: Pipeline, preset: str, changes: Mapping[str, Any], start: Path, *, rate: float) -> PreferenceConfig:
    """A preset's settings on the quickstart's pairs, with the sections and a share of the steps of its scorer."""
    config, scores = presets.get_config(preset), to_dict(pipeline.settings.scores)
    config.update({section: scores[section] for section in SECTIONS})
    config.update(
        seed=pipeline.settings.seed,
        init=str(start),
        steps=math.ceil(STEPS * scores["steps"]),
        data=dict(path=str(pipeline.workdir / "pairs")),
        optimizer=dict(learning_rate=rate * scores["optimizer"]["learning_rate"], weight_decay=0.0),
    )
    if config.reference != NO_REFERENCE:
        config.reference_cache = str(pipeline.workdir / SHARED / "reference")
    config.update_from_flattened_dict(dict(changes))
    return parse(PreferenceConfig, config)


def _of_method(pipeline: Pipeline, method: Method, further: Mapping[str, Any]) -> PreferenceConfig:
    start = folder(pipeline, method.start) if method.start else pipeline.workdir / SFT
    return on_pairs_from(pipeline, method.preset, {**method.changes, **further}, start, rate=method.rate)


def _supervised(pipeline: Pipeline, method: Method) -> SFTConfig:
    """The supervised stage gone on with, for a quarter of its steps."""
    stage = pipeline.settings.sft
    rate = method.rate * stage.optimizer.learning_rate
    return dataclasses.replace(
        pipeline.supervised(stage, pipeline.workdir / SFT, "sft", False),
        steps=math.ceil(stage.steps / 4),
        targets=dataclasses.replace(stage.targets, **method.changes),
        optimizer=dataclasses.replace(stage.optimizer, learning_rate=rate),
    )
