"""`srlhfv quickstart --compare=NAME,...`: other ways to make the supervised policy safer, on the same pairs and prompts, as the oracle
judges them.

Each trains in WORKDIR/compare.NAME from the quickstart's supervised policy and its pairs, and answers the test prompts with the keys
that all policies have. Settings here were chosen on validation prompts of seed 0, once for all seeds.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from srlhfv_jax.config import PreferenceConfig, to_dict
from srlhfv_jax.configs import preference as presets
from srlhfv_jax.errors import UserError, nearest
from srlhfv_jax.parsing import parse
from srlhfv_jax.preference import run as preference
from srlhfv_jax.quickstart.pipeline import Pipeline

ALL = "all"
STEPS = 0.27  # of the scorer's
SECTIONS = ("lora", "model", "mesh", "data", "optimizer", "checkpoint", "log")  # as the scorer's


class Method(NamedTuple):
    """One way to learn from the quickstart's pairs."""

    preset: str  # of configs/preference.py
    reads: str  # of the pairs, for people
    rate: float  # learning rate, in those of the scorer
    changes: Mapping[str, Any] = {}  # of the preset
    start: str = ""  # the method whose policy it goes on from; "": the supervised policy


METHODS = {
    "dpo_helpful": Method("dpo_helpful", "helpfulness", 0.25, {"beta": 0.5}),
    "dpo_harmless": Method("dpo_harmless", "safety", 0.125, {"beta": 0.5}),
    "dpo_safe_better": Method("dpo_safe_better", "helpfulness, safety of the winner", 0.125, {"beta": 0.5}),
    "ipo": Method("ipo", "helpfulness", 0.25, {"beta": 0.5}),
    "simpo": Method("simpo", "helpfulness", 0.125, {"sft_coef": 1.0}),
    "safedpo": Method("safedpo", "helpfulness, safety of both", 0.25, {"beta": 0.5, "sft_coef": 1.0}),
    "bfpo": Method("bfpo", "helpfulness, safety of both", 0.25, {"beta": 0.2, "sft_coef": 1.0}),
    "unlearn": Method("unlearn", "safety", 0.125),
    "sacpo": Method("sacpo", "helpfulness, then safety", 0.25, {"beta": 0.25}, start="dpo_helpful"),
}


def chosen(text: str) -> tuple[str, ...]:
    """The methods that --compare names, with those that they start from, in the order in which they run.

    Raises:
        UserError: one is not known.
    """
    names = set(METHODS) if text == ALL else {name for name in text.split(",") if name}
    for name in sorted(names - METHODS.keys()):
        raise UserError(f"--compare has {name!r}, which is no method: {nearest(name, (ALL, *METHODS))}")
    names |= {METHODS[name].start for name in names if METHODS[name].start}
    return tuple(name for name in METHODS if name in names)


def run(pipeline: Pipeline, names: Sequence[str]) -> dict[str, float]:
    """Train and judge each method that is not done; gives `NAME.NUMBER` and `NAME.seconds`.

    What the reference says of all pairs is computed once, and its seconds are shared evenly by the methods that read it.
    """
    shared = pipeline.workdir / "compare.reference"
    pipeline.step(shared.name, lambda folder: preference.run(_of_all_pairs(pipeline, shared), folder))
    result: dict[str, float] = {}
    for name in names:
        settings = stage(pipeline, name)
        folder = pipeline.workdir / f"compare.{name}"
        pipeline.step(folder.name, lambda folder: preference.run(settings, folder))
        judged = pipeline.step(f"{folder.name}.judged", lambda _: pipeline.judge(folder, "test").metrics)
        result |= {f"{name}.{key}": value for key, value in judged.items()}
        result[f"{name}.seconds"] = pipeline.seconds[folder.name]
        if settings.has_reference:
            result[f"{name}.seconds"] += pipeline.seconds[shared.name] / len(METHODS)
    return result


def stage(pipeline: Pipeline, name: str) -> PreferenceConfig:
    """A method's settings, with the sizes of the quickstart's scorer and its paths filled in."""
    method = METHODS[name]
    start = pipeline.workdir / (f"compare.{method.start}" if method.start else "sft")
    return _filled(pipeline, method.preset, method.changes, start, rate=method.rate)


def _of_all_pairs(pipeline: Pipeline, folder: Path) -> PreferenceConfig:
    """A stage of no step that reads every pair: ties as well."""
    scorer = {"scores.scorer": str(pipeline.workdir / "round1_scores")}
    settings = _filled(pipeline, "mocan", scorer, pipeline.workdir / "sft", rate=1.0)
    return dataclasses.replace(settings, steps=0)


def _filled(pipeline: Pipeline, preset: str, changes: Mapping[str, Any], start: Path, *, rate: float) -> PreferenceConfig:
    config, scores = presets.get_config(preset), to_dict(pipeline.settings.scores)
    config.update({section: scores[section] for section in SECTIONS})
    config.update(
        seed=pipeline.settings.seed,
        init=str(start),
        steps=math.ceil(STEPS * scores["steps"]),
        reference_cache=str(pipeline.workdir / "compare.reference" / "reference"),
        data=dict(path=str(pipeline.workdir / "pairs")),
        optimizer=dict(learning_rate=rate * scores["optimizer"]["learning_rate"], weight_decay=0.0),
    )
    config.update_from_flattened_dict(dict(changes))
    return parse(PreferenceConfig, config)
