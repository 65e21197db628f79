"""Activation revision on a finished quickstart: one fit on its pairs, several strengths of it judged on the test prompts.

Settings were chosen on validation prompts of seed 0, once for all seeds.
"""

import dataclasses
import shutil
from pathlib import Path

from srlhfv_jax.parallel import hosts
from srlhfv_jax.quickstart.pipeline import Pipeline
from srlhfv_jax.runs import revise

NAME = "compare.revision"
SITE, TOP = "layer", 1
STRENGTHS = (0, 1, 2, 4)
BATCH = 64  # pairs read at once


def revised(pipeline: Pipeline) -> dict[str, float]:
    """`revision.STRENGTH.NUMBER` of the supervised policy with each strength, as the oracle judges it on the test prompts.

    Its policies share one file of weights. WORKDIR/compare.revision has them, each in a folder called by its strength.
    """
    result = pipeline.step(NAME, lambda folder: _fit(pipeline, folder))
    for strength in STRENGTHS:
        folder = pipeline.workdir / NAME / f"{strength}"
        judged = pipeline.step(f"{NAME}.{strength}.judged", lambda _, folder=folder: pipeline.judge(folder, "test").metrics)
        result |= {f"revision.{strength}.{name}": value for name, value in judged.items()}
    return result | {"revision.seconds": pipeline.seconds[NAME]}


def _fit(pipeline: Pipeline, folder: Path) -> dict[str, float]:
    """Fit once and write a policy of each strength."""
    if hosts.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of a start that was stopped
    hosts.barrier("the folder of revisions is empty")
    policy, pairs = str(pipeline.workdir / "sft"), str(pipeline.workdir / "pairs")
    data = dataclasses.replace(pipeline.settings.scores.data, path=pairs, batch_size=BATCH)
    fitted = revise.fit(policy, pipeline.settings.ppo_lag.model, data, SITE, TOP)
    for strength in STRENGTHS:
        revise.write(folder / f"{strength}", policy, fitted.revision._replace(strength=float(strength)), pairs)
    return {f"revision.{name}": value for name, value in fitted.numbers.items()}
