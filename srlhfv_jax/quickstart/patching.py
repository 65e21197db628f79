"""SafePatching on the embedded task: two policies from the supervised one, away from unsafe answers and towards them, as its patches.

Both learn from the pairs whose less safe answer is labelled unsafe; these answers' gradient gives the scores too. Settings were chosen
on validation prompts of seed 0, once for all seeds.
"""

import functools
import math
from pathlib import Path

from srlhfv_jax.config import PreferenceConfig
from srlhfv_jax.parallel import hosts
from srlhfv_jax.preference import run as preference
from srlhfv_jax.quickstart import kinds
from srlhfv_jax.quickstart.pipeline import PAIR_BATCH, Pipeline, read_rows, write_rows
from srlhfv_jax.runs import patch
from srlhfv_jax.weights.patch import Recipe

NAME = "patched"
PAIRS = "pairs.parquet"
FORGET = {"ascent": 1.0, "descent": -1.0}  # config.forget_coef of the two policies
STEPS, RATE = 0.1, 0.125  # of the two policies, in those of the scorer
RECIPE = Recipe(alpha=2.0, beta=2.0, top_safety=0.5, top_utility=0.5, keep=0.5)


def patched(pipeline: Pipeline) -> dict[str, float]:
    """Train both policies, patch the supervised one and judge it on test prompts, where that is not done.

    Returns:
        `patched.NUMBER`: the oracle's, `.entries.SET` of weights/patch.py, and `.seconds` of all steps.
    """
    folder = pipeline.workdir / f"compare.{NAME}"
    result = made(pipeline, folder, RECIPE)
    judged = pipeline.step(f"{folder.name}.judged", lambda _: pipeline.judge(folder, "test").metrics)
    steps = (f"{folder.name}.rows", *(f"{folder.name}.{name}" for name in FORGET), folder.name)
    numbers = {key: value for key, value in result.items() if key.startswith("entries.")} | judged
    numbers["seconds"] = sum(pipeline.seconds[step] for step in steps)
    return {f"{NAME}.{key}": value for key, value in numbers.items()}


def made(pipeline: Pipeline, folder: Path, recipe: Recipe) -> dict[str, float]:
    """The patched policy in `folder`, by a recipe; gives the numbers of its result.json."""
    trained, rows = f"compare.{NAME}", pipeline.workdir / f"compare.{NAME}.rows"
    pipeline.step(rows.name, lambda folder: _write_unsafe(pipeline, folder))
    for name, forget in FORGET.items():
        settings = _settings(pipeline, rows / PAIRS, forget)
        pipeline.step(f"{trained}.{name}", functools.partial(preference.run, settings))
    policies = {"base": "sft", "safety": f"{trained}.ascent", "utility": f"{trained}.descent"}
    data = pipeline.settings.scores.data  # as both policies read them
    settings = patch.Settings(
        **{role: str(pipeline.workdir / name) for role, name in policies.items()},
        **recipe._asdict(),
        data=str(rows / PAIRS),
        out=str(folder),
        prompt_length=data.prompt_length,
        response_length=data.response_length,
        batch_size=PAIR_BATCH,
        seed=pipeline.settings.seed,
    )
    return pipeline.step(folder.name, functools.partial(patch.run, settings))


def _write_unsafe(pipeline: Pipeline, folder: Path) -> dict[str, float]:
    """Write the pairs whose less safe answer is labelled unsafe."""
    rows = [row for path in sorted((pipeline.workdir / "pairs").glob("*.parquet")) for row in read_rows(path)]
    other = {"1": "2", "2": "1"}  # of the safer answer's number; a tie has none
    unsafe = [
        row
        for row in rows
        if row["safer_response_id"] in other and row[f"is_response_{other[row['safer_response_id']]}_safe"] == "no"
    ]
    if hosts.process_index() == 0:
        write_rows(folder / PAIRS, unsafe)
    hosts.barrier(f"{folder / PAIRS} is written")
    return {"pairs": float(len(unsafe)), "of": float(len(rows))}


def _settings(pipeline: Pipeline, rows: Path, forget: float) -> PreferenceConfig:
    """One of the two policies: the safer answer of a pair has no part in it."""
    steps = math.ceil(STEPS * pipeline.settings.scores.steps)
    changes = {"keep_coef": 0.0, "forget_coef": forget, "data.path": str(rows), "steps": steps}
    return kinds.on_pairs_from(pipeline, "unlearn", changes, pipeline.workdir / kinds.SFT, rate=RATE)
