"""Safety under a later fine-tuning, on the embedded task: PPO-Lagrangian's policy goes on with harmless rows alone, once as a whole and
once with the units that serve its safety standing still (SSAH, arXiv 2410.10862).

Units are scored on the policy's own answers to training prompts, the harmful ones against the harmless ones. Rows to go on with are
the harmless ones of the supervised stage, one in ten held out.
"""

import dataclasses
import functools
import math
from pathlib import Path

from srlhfv_jax.config import SFTConfig
from srlhfv_jax.evaluation import answering
from srlhfv_jax.quickstart.pipeline import PAIR_BATCH, Pipeline, read_rows, write_rows
from srlhfv_jax.runs import checkpoints, units
from srlhfv_jax.supervised import sft
from srlhfv_jax.weights.units import SHARES

UNITS, ROWS = "compare.units", "compare.units.rows"
SAFE, USEFUL, TUNE, HELD_OUT = "safe", "useful", "tune", "heldout"  # rows, by file
PROMPTS = 1024  # training prompts that the policy answers
STEPS, RATE = 0.25, 0.25  # of the fine-tuning, in those of the supervised stage


def frozen_units(pipeline: Pipeline) -> dict[str, float]:
    """Measure the units, fine-tune both policies and judge them on test prompts, where that is not done.

    Returns:
        `frozen_units.` and `unfrozen.`: `harm_after`, `over_refusal_after` and `helpful_after` of the oracle, `loss` in nats per token
        of held-out harmless rows, `seconds`; `frozen_units.neurons` and `.heads` that stand still.
    """
    policy = constrained(pipeline)
    file = pipeline.workdir / UNITS / "units.safetensors"
    pipeline.step(ROWS, lambda folder: _write_rows(pipeline, policy, folder))
    result = pipeline.step(UNITS, lambda folder: _measure(pipeline, policy, file))
    for name, frozen in (("frozen_units", str(file)), ("unfrozen", "")):
        folder = pipeline.workdir / f"compare.{name}"
        told = pipeline.step(folder.name, functools.partial(sft.run, tuning(pipeline, policy, frozen)))
        judged = pipeline.step(f"{folder.name}.judged", lambda _, folder=folder: pipeline.judge(folder, "test").metrics)
        numbers = {"harm": judged["harm_rate"], "over_refusal": judged["over_refusal"], "helpful": judged["helpful"]}
        result |= {f"{name}.{key}_after": value for key, value in numbers.items()} | {f"{name}.loss": told["evaluation.loss"]}
        result[f"{name}.seconds"] = pipeline.seconds[folder.name]
    return result


def constrained(pipeline: Pipeline) -> Path:
    """PPO-Lagrangian's last policy, whose round is done."""
    name = f"round{pipeline.settings.rounds}_ppo_lag"
    best = pipeline.step(name, _never)["best_feasible.step"]
    return pipeline.workdir / name / ("best_feasible" if best >= 0 else "export")


def tuning(pipeline: Pipeline, policy: Path, frozen: str) -> SFTConfig:
    """The fine-tuning on harmless rows.

    Args:
        frozen: file of the units that stand still; "": none do.
    """
    stage, rows = pipeline.settings.sft, pipeline.workdir / ROWS
    settings = pipeline.supervised(stage, policy, "sft", False)
    steps = math.ceil(STEPS * stage.steps)
    return dataclasses.replace(
        settings,
        steps=steps,
        data=dataclasses.replace(settings.data, path=str(rows / f"{TUNE}.parquet")),
        evaluation=str(rows / f"{HELD_OUT}.parquet"),
        optimizer=dataclasses.replace(stage.optimizer, learning_rate=RATE * stage.optimizer.learning_rate, frozen_units=frozen),
    )


def _write_rows(pipeline: Pipeline, policy: Path, folder: Path) -> dict[str, float]:
    """Both sets that units are scored on, and the rows to go on with."""
    asked = read_rows(pipeline.data / "pair_prompts.parquet")
    sampler, prepared = pipeline.sampler(1.0), pipeline.prompts("pair_prompts")
    prepared = prepared._replace(rows=prepared.rows[:PROMPTS])
    loaded = checkpoints.load(str(policy), pipeline.settings.ppo_lag.model, sampler.mesh)
    said = sampler.answers(loaded, prepared, answering.keys(pipeline.settings.seed))
    own = [asked[row] | {"response": text} for row, text in zip(said.prompts.tolist(), said.texts, strict=True) if text]
    tune = [row for row in read_rows(pipeline.data / "sft.parquet") if row["harmful"] == "no"]
    sets = {
        SAFE: [_plain(row) for row in own if row["harmful"] == "yes"],
        USEFUL: [_plain(row) for row in own if row["harmful"] == "no"],
        TUNE: [_plain(row) for number, row in enumerate(tune) if number % 10],
        HELD_OUT: [_plain(row) for row in tune[::10]],
    }
    for name, rows in sets.items():
        write_rows(folder / f"{name}.parquet", rows)
    return {f"rows.{name}": len(rows) for name, rows in sets.items()}


def _plain(row: dict) -> dict:
    return {"question": row["question"], "image": row["image"], "responses": [row["response"]]}


def _measure(pipeline: Pipeline, policy: Path, file: Path) -> dict[str, float]:
    rows, stage = pipeline.workdir / ROWS, pipeline.settings.ppo_lag
    settings = units.Settings(
        policy=str(policy),
        safe=str(rows / f"{SAFE}.parquet"),
        useful=str(rows / f"{USEFUL}.parquet"),
        out=str(file),
        **SHARES,
        disjoint=True,
        prompt_length=stage.data.prompt_length,
        response_length=stage.data.response_length,
        batch_size=PAIR_BATCH,
        dtype=stage.model.dtype,
    )
    counts = units.write_units(settings)
    still = [sum(places) for places in zip(counts["safety"], counts["complex"], strict=True)]
    return {"frozen_units.neurons": float(still[0]), "frozen_units.heads": float(still[1])}


def _never(folder: Path) -> dict[str, float]:
    raise ValueError(f"{folder} is not done: run the quickstart to its end first")
