"""The report's pictures and what a run logs are the same metrics: one tiny run of each stage, with every option that logs more."""

import numpy as np
import pytest
from tiny_stages import picture_task, settings

from srlhfv_jax.config import GuardConfig, PPOLagConfig, PreferenceConfig, ScoresConfig, SFTConfig
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.guard import train as guard
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.preference import run as preference
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.report import build, curves, workdir
from srlhfv_jax.supervised import scores, sft

pytestmark = pytest.mark.slow  # a run of every stage

ROWS = {"data.split": "", "data.prompt_length": 40, "data.response_length": 24, "data.batch_size": 4}


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> workdir.Workdir:
    """A folder with a run of each stage; of PPO-Lagrangian three, since separate trees, groups and options log other metrics."""
    out = picture_task(tmp_path_factory.mktemp("stages"))
    cells = task_rows.split_cells(0)
    write_rows(out / "pairs.parquet", labelled_pairs(cells))
    write_rows(out / "prompts.parquet", task_rows.prompt_rows(0, cells, "train", 8, task_rows.Mix(0.4, 0.4, 0.1, 0.1)))
    rows, pairs, prompts = (
        ROWS | {"data.path": str(out / f"{name}.parquet"), "model.scan_unroll": 1} for name in ("sft", "pairs", "prompts")
    )
    sft.run(settings(SFTConfig, "sft", init=str(out / "base"), init_random=True, steps=1, **rows, **held(rows)), out / "sft")
    scores.run(settings(ScoresConfig, "scores", init=str(out / "sft"), steps=1, **pairs, **held(pairs)), out / "scores")
    replayed = {"loss": "square", "replay.path": str(out / "pairs.parquet")}
    preference.run(
        settings(PreferenceConfig, "preference", init=str(out / "sft"), steps=1, **pairs, **held(pairs), **replayed),
        out / "preference",
    )
    each = {"axis": "each", "loss": "kto", "steps": 1}
    preference.run(settings(PreferenceConfig, "preference", init=str(out / "sft"), **pairs, **each), out / "kto")
    judged = {"taxonomy": "embedded", "steps": 1} | rows | held(rows)
    guard.run(settings(GuardConfig, "guard", init=str(out / "sft"), **judged), out / "guard")
    both = prompts | {"policy": str(out / "sft"), "iterations": 1, "validation.path": str(out / "prompts.parquet")}
    shared = {"scorer": str(out / "scores"), "validation.judge": "oracle", "validation.every_steps": 1}
    ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **both, **shared), out / "ppo_lag")
    separate = {"sharing": "separate", "reward": str(out / "scores"), "cost": str(out / "scores"), "scorer": ""}
    options = {"rollout.old_logp": "recompute", "ptx.coef": 0.5, "ptx.path": str(out / "sft.parquet"), "validation.path": ""}
    options |= {"constraint.controller": "p3o", "constraint.init": 0.0}
    ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **both | separate | options), out / "separate")
    groups = {
        "scorer": str(out / "scores"),
        "ppo.advantage": "group",
        "ppo.group_size": 2,
        "ppo.resample": 1,
        "ppo.kl_in": "loss",
        "validation.path": "",
    }
    groups |= {"ppo.minibatches": 2, "ppo.target_kl": 1.0, "ppo.kl_target": 1.0, "ppo.dual_clip": 3.0, "rollout.slots": 2}
    groups |= {"rollout.old_logp": "recompute", "ppo.importance_cap": 2.0, "constraint.controller": "pid"}
    ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **both | groups), out / "groups")
    return workdir.read(out)


def held(rows: dict) -> dict:
    return {"evaluation": rows["data.path"], "evaluation_every": 1}


def labelled_pairs(cells) -> list[dict]:
    """Pairs of two answers to harmful questions, labelled by the oracle: some are strict in each preference."""
    rng = np.random.default_rng(0)
    pairs = []
    for row in task_rows.prompt_rows(0, cells, "train", 24, task_rows.Mix(1.0, 0.0, 0.0, 0.0)):
        cell = task_rows.Cell(row["concept"], row["intent"])
        one, two = (task_rows.sample_answer(rng, cell) for _ in range(2))
        pairs.append(task_rows.pair_row(row, one, two, task_rows.label_pair(rng, *cell, one, two, noise=None)))
    return pairs


def logged(work: workdir.Workdir, kind: str) -> set[str]:
    return {key for stage in work.stages if stage.kind == kind for row in stage.rows for key in row} - {"step"}


def test_every_kind_of_stage_is_recognised(work):
    assert {stage.name: stage.kind for stage in work.stages} == {
        "sft": "sft", "scores": "scores", "preference": "preference", "guard": "guard", "ppo_lag": "ppo_lag", "separate": "ppo_lag",
        "groups": "ppo_lag", "kto": "preference",
    }  # fmt: skip


@pytest.mark.parametrize("record", workdir.STAGES, ids=lambda record: record.kind)
def test_every_metric_that_is_drawn_is_logged_and_every_logged_one_is_named(work, record):
    """With a name that nobody logs a picture never appears, and with one that no record knows it has no words."""
    found = logged(work, record.kind)
    assert set(record.keys()) <= found, "drawn and never logged"
    elsewhere = curves.CONSTRAINT if record.kind == "ppo_lag" else ()
    assert {key for key in found if not key.startswith(curves.VALIDATION)} <= {*record.keys(), *elsewhere}, (
        "logged, without words"
    )


def test_every_picture_of_every_record_is_on_the_page(work):
    html = build.render(work)
    for record in workdir.STAGES:
        for curve in record.curves:
            assert curve.title.replace("'", "&#x27;") in html, curve
    assert all(key in logged(work, "ppo_lag") for key in curves.VALIDATED)
    assert "Validation: helpfulness" in html
