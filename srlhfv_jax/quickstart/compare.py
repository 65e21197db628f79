"""`srlhfv quickstart --compare=NAME,...`: other ways to make the supervised policy safer, on the same pairs and prompts, as the oracle
judges them.

Each trains in WORKDIR/compare.NAME from the quickstart's supervised policy and its pairs, and answers the test prompts with the keys
that all policies have. Settings here were chosen on validation prompts of seed 0, once for all seeds.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from srlhfv_jax.config import PreferenceConfig, SFTConfig, to_dict
from srlhfv_jax.config.preference import NO_REFERENCE
from srlhfv_jax.configs import preference as presets
from srlhfv_jax.data import loader, sources
from srlhfv_jax.data.preferences import Choice
from srlhfv_jax.data.quickstart import answers
from srlhfv_jax.errors import UserError, nearest
from srlhfv_jax.evaluation import controls, dual
from srlhfv_jax.guard import generate
from srlhfv_jax.losses import dual as losses
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.parsing import parse
from srlhfv_jax.preference import reference, run as preference
from srlhfv_jax.quickstart.pipeline import PAIR_BATCH, Pipeline
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.runs.merge import merge_policies
from srlhfv_jax.supervised import sft

ALL = "all"
SHARED = "compare.reference"  # what the reference says of all pairs
BETA = 0.5  # of most; the published 0.1 lets a small model's answers fall apart
# of mocan's multiplier: mean learned cost, as a share of the way from the lowest one to that of the reward alone
DUAL_BUDGET = 0.03
DUAL_PROMPTS, DUAL_SAMPLES = 256, 16
MERGED = "0,0.25,0.5,0.75,1"  # of SACPO, between its first step's policy and itself
STEPS = 0.27  # of the scorer's
SECTIONS = ("lora", "model", "mesh", "data", "optimizer", "checkpoint", "log")  # as the scorer's


BLIND, ANSWERS, BLIND_ROWS = "compare.blind", "answers.jsonl", 4096
SEEING = ("dpo_harmless", "bpo")  # how much their answers depend on the picture is measured
ROWS = dict(  # how commands read rows of the embedded task
    split="",
    image_dir="",
    allow_dir="",
    max_pixels=0,
    system_prompt="",
    revision="",
    columns=(),
    label_means="desirable",
    chosen_means="helpful",
    fetch=False,
)
DERTA_PAIRS = 0.1  # of rows; the others are the supervised ones
BENIGN_REFUSAL = {"kind": "benign_refusal", "share": 0.1, "refusals": (answers.REFUSAL,)}  # of config.targets
DERTA = {"kind": "derta", "prefix": True, "rto": True, "refusal": answers.REFUSAL.split()[0]}


class Method(NamedTuple):
    """One way to learn from the quickstart's pairs."""

    preset: str  # of configs/preference.py
    reads: str  # of the pairs, for people
    rate: float  # learning rate, in those of the scorer
    changes: Mapping[str, Any] = {}  # of the preset
    start: str = ""  # the method whose policy it goes on from; "": the supervised policy
    supervised: bool = (
        False  # `srlhfv sft` on the pairs, or on the supervised rows where it reads no pairs; its rate in those of SFT
    )
    blind: bool = False  # answers of the supervised policy to a grey picture lose too
    by_scores: bool = False  # the scorer says who wins, with the multiplier of `srlhfv dual`
    merged: bool = False  # policies between that start and it are judged too


METHODS = {
    "dpo_helpful": Method("dpo_helpful", "helpfulness", 0.25, {"beta": BETA}),
    "dpo_harmless": Method("dpo_harmless", "safety", 0.125, {"beta": BETA}),
    "bpo": Method("bpo", "safety; answers without the picture", 0.125, {"beta": BETA}, blind=True),
    "dpo_safe_better": Method("dpo_safe_better", "helpfulness, safety of the winner", 0.125, {"beta": BETA}),
    "ipo": Method("ipo", "helpfulness", 0.25, {"beta": BETA}),
    "simpo": Method("simpo", "helpfulness", 0.125, {"sft_coef": 1.0}),
    "safedpo": Method("safedpo", "helpfulness, safety of both", 0.25, {"beta": BETA, "sft_coef": 1.0}),
    "bfpo": Method("bfpo", "helpfulness, safety of both", 0.25, {"beta": 0.2, "sft_coef": 1.0}),
    "mocan": Method("mocan", "nothing; a scorer", 0.25, {"beta": BETA}, by_scores=True),
    "unlearn": Method("unlearn", "safety", 0.125),
    "plain": Method("", "no pairs: the supervised rows again", 0.25, supervised=True),
    "benign_refusal": Method("", "no pairs: the supervised rows", 0.25, BENIGN_REFUSAL, supervised=True),
    "derta": Method("", "safety of both", 0.03, DERTA, supervised=True),
    "sacpo": Method("sacpo", "helpfulness, then safety", 0.25, {"beta": 0.25}, start="dpo_helpful", merged=True),
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


def with_done(names: Sequence[str], workdir: Path) -> tuple[str, ...]:
    """These methods, and those that are done in a workdir: what was measured stays in its result."""
    return tuple(name for name in METHODS if name in names or (workdir / f"compare.{name}.judged" / "done.json").exists())


def run(pipeline: Pipeline, names: Sequence[str]) -> dict[str, float]:
    """Train and judge each method that is not done; gives `NAME.NUMBER` and `NAME.seconds`.

    What the reference says of all pairs is computed once, and its seconds are shared evenly by the methods that read it.
    """
    shared = pipeline.workdir / SHARED
    pipeline.step(shared.name, lambda folder: preference.run(_of_all_pairs(pipeline, shared), folder))
    result: dict[str, float] = {}
    for name in names:
        folder = pipeline.workdir / f"compare.{name}"
        if METHODS[name].by_scores:
            told = pipeline.step(f"{folder.name}.dual", lambda folder: _dual(pipeline, folder))
            result |= {f"{name}.multiplier": told["multiplier"], f"{name}.budget": told["budget"]}
        if METHODS[name].blind:
            pipeline.step(BLIND, lambda folder: _answer_blindly(pipeline, folder))
        train = trainer(pipeline, name, result.get(f"{name}.multiplier", 0.0))
        pipeline.step(folder.name, train)
        judged = pipeline.step(f"{folder.name}.judged", lambda _: pipeline.judge(folder, "test").metrics)
        result |= {f"{name}.{key}": value for key, value in judged.items()}
        result[f"{name}.seconds"] = pipeline.seconds[folder.name] + pipeline.seconds.get(f"{folder.name}.dual", 0.0)
        if name in SEEING:
            result |= pipeline.step(f"{folder.name}.blank", lambda out: _blank_drop(pipeline, name, folder, out))
        if METHODS[name].blind:
            result[f"{name}.seconds"] += pipeline.seconds[BLIND]
        if METHODS[name].start:
            result[f"{name}.seconds"] += result[f"{METHODS[name].start}.seconds"]
        elif not METHODS[name].supervised:
            result[f"{name}.seconds"] += pipeline.seconds[shared.name] / sum(not one.supervised for one in METHODS.values())
        if METHODS[name].merged:
            start = pipeline.workdir / f"compare.{METHODS[name].start}"
            result |= pipeline.step(f"{folder.name}.merged", lambda out: _merged(pipeline, name, start, folder, out))
    return result


def trainer(pipeline: Pipeline, name: str, multiplier: float = 0.0) -> Callable[[Path], dict[str, float]]:
    """A method's stage, as a function of its workdir.

    Args:
        multiplier: of a method that goes by a scorer.
    """
    method = METHODS[name]
    if method.supervised:
        return functools.partial(sft.run, _supervised(pipeline, method))
    start = pipeline.workdir / (f"compare.{method.start}" if method.start else "sft")
    scores = {"scores.scorer": str(pipeline.workdir / "round1_scores"), "scores.multiplier": multiplier}
    changes = dict(method.changes) | (scores if method.by_scores else {})
    changes |= {"blind": str(pipeline.workdir / BLIND / ANSWERS)} if method.blind else {}
    return functools.partial(preference.run, _filled(pipeline, method.preset, changes, start, rate=method.rate))


def _supervised(pipeline: Pipeline, method: Method) -> SFTConfig:
    """The supervised stage gone on with, for a quarter of its steps."""
    stage = pipeline.settings.sft
    settings = pipeline.supervised(stage, pipeline.workdir / "sft", "sft", False)
    data = settings.data
    if method.changes.get("kind") == "derta":  # pairs, whose answers stand one behind the other
        path = f"{pipeline.workdir / 'pairs'}:{DERTA_PAIRS},{data.path}:{1 - DERTA_PAIRS}"
        data = dataclasses.replace(data, path=path, response_length=2 * data.response_length)
    rate = method.rate * stage.optimizer.learning_rate
    return dataclasses.replace(
        settings,
        steps=math.ceil(stage.steps / 4),
        targets=dataclasses.replace(stage.targets, **method.changes),
        data=data,
        optimizer=dataclasses.replace(stage.optimizer, learning_rate=rate),
    )


def _answer_blindly(pipeline: Pipeline, folder: Path) -> dict[str, float]:
    """Record what the supervised policy says to prompts of the pairs whose pictures are grey."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANSWERS).unlink(missing_ok=True)  # of a start that was stopped
    data = pipeline.settings.ppo_lag.data
    settings = generate.Settings(
        **ROWS | {"split": f"[:{BLIND_ROWS}]"},
        policy=str(pipeline.workdir / "sft"),
        guard="",
        rounds=0,
        on_unsafe="warn",
        check_input=False,
        feedback=False,
        prompt=None,
        image="",
        data=str(pipeline.workdir / "pairs" / "round1.parquet"),
        out=str(folder / ANSWERS),
        picture="blank",
        temperature=pipeline.task.pair_temperature,
        prompt_length=data.prompt_length,
        response_length=data.response_length,
        batch_size=PAIR_BATCH,
        seed=pipeline.settings.seed,
        dtype=pipeline.settings.ppo_lag.model.dtype,
    )
    _, answers = generate.answer_rows(settings)
    return {"answers": float(answers)}


def _blank_drop(pipeline: Pipeline, name: str, policy: Path, out: Path) -> dict[str, float]:
    """`NAME.blank_drop`: nats by which the log-probability of safer answers, on held-out pairs, falls when the picture is grey; per token."""
    stage = _filled(pipeline, "dpo_harmless", {}, policy, rate=1.0)
    data = dataclasses.replace(stage.data, path=str(pipeline.workdir / "pairs_heldout"))
    shape, examples = checkpoints.load_shape(str(policy), stage.model), sources.load_examples(data)
    totals = []
    for place, rows in (("real", examples), ("blank", controls.blanked(examples))):
        prepared = loader.fit("preference", rows, shape.processor, data, choice=Choice("safer", "none", False))
        reader = reference.Reader(data, stage.model, use_mesh(stage.mesh), 1, out / place)
        sides = [row.example.chosen for row in prepared.rows]
        logp_NS = reference.logp(str(policy), prepared, reader)
        tokens = sum(len(row.responses[side]) for row, side in zip(prepared.rows, sides, strict=True))
        totals.append(float(logp_NS[np.arange(len(sides)), sides].sum()) / tokens)
    return {f"{name}.blank_drop": totals[0] - totals[1]}


def _dual(pipeline: Pipeline, folder: Path) -> dict[str, float]:
    """The multiplier of a budget, from scored answers of the supervised policy to some of PPO's prompts."""
    data = pipeline.settings.ppo_lag.data
    settings = dual.Settings(
        **ROWS,
        workdir=str(folder),
        policy=str(pipeline.workdir / "sft"),
        data=str(pipeline.data / "prompts.parquet"),
        scorer=str(pipeline.workdir / "round1_scores"),
        helpful="",
        harmless="",
        reference="",
        kind="mean",
        budget=0.0,  # below, when the costs are known
        beta=BETA,
        ceiling=100.0,
        samples=DUAL_SAMPLES,
        prompts=DUAL_PROMPTS,
        prompt_length=data.prompt_length,
        response_length=data.response_length,
        batch_size=PAIR_BATCH,
        seed=pipeline.settings.seed,
        dtype=pipeline.settings.ppo_lag.model.dtype,
    )
    folder.mkdir(parents=True, exist_ok=True)
    recorded = dual.record(settings, folder)
    lowest, free = losses.feasible_range(recorded.reward_NG, recorded.cost_NG, BETA)
    return dual.solve(dataclasses.replace(settings, budget=lowest + DUAL_BUDGET * (free - lowest)), recorded)


def _merged(pipeline: Pipeline, name: str, start: Path, end: Path, out: Path) -> dict[str, float]:
    """Numbers of the policies between two, `NAME_merge.Q.NUMBER`."""
    result = {}
    for folder in merge_policies(str(start), str(end), out, MERGED):
        judged = pipeline.judge(folder, "test").metrics
        result |= {f"{name}_merge.{folder.name.removeprefix('q')}.{key}": value for key, value in judged.items()}
    return result


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
        data=dict(path=str(pipeline.workdir / "pairs")),
        optimizer=dict(learning_rate=rate * scores["optimizer"]["learning_rate"], weight_decay=0.0),
    )
    if config.reference != NO_REFERENCE:
        config.reference_cache = str(pipeline.workdir / SHARED / "reference")
    config.update_from_flattened_dict(dict(changes))
    return parse(PreferenceConfig, config)
