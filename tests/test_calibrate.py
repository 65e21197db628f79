"""`srlhfv calibrate` on tiny models: from labelled rows to numbers beside the heads, the report, a constrained run and a certificate."""

import functools
import json
import math
from pathlib import Path

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_stages import picture_task, settings

from srlhfv_jax.cli import calibrate, certify, report
from srlhfv_jax.config import PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import calibrations, export_pretrained, load_config_and_processor
from srlhfv_jax.models import score_heads, vlm
from srlhfv_jax.ppo_lag import check, run as ppo_lag
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.runs import rewrite
from srlhfv_jax.supervised import scores, sft

KEPT = ("question", "image", "response_1", "response_2")
LABELS = ("is_response_1_safe", "is_response_2_safe")
ROWS = {"data.split": "", "data.prompt_length": 30, "data.response_length": 18, "data.batch_size": 8}


def labelled_rows(turned: bool) -> list[dict]:
    """Pairs with safety labels alone; `turned`: each label is the other one."""
    other = {"yes": "no", "no": "yes"}
    found = task_rows.probe_rows(0, task_rows.split_cells(0), "test", 40, None)
    return [
        {name: row[name] for name in KEPT} | {name: other[row[name]] if turned else row[name] for name in LABELS} for row in found
    ]


def run(folder: Path, name: str, *more: str) -> dict:
    out = folder / name
    calibrate.main(
        [f"--scorer={folder / 'scorer'}", f"--data={folder / 'labelled.parquet'}", f"--workdir={out}", "--batch_size=8", *more]
    )
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A folder with a policy's workdir, a random `scorer`, and labels that its costs rise with: a random head leans either way."""
    folder = picture_task(tmp_path_factory.mktemp("calibrate"))
    config, _ = load_config_and_processor(folder / "base")
    key = jax.random.key(2)
    params, heads = jax.jit(functools.partial(vlm.init, config))(key), score_heads.init(config, ("reward", "cost"), key)
    export_pretrained(folder / "scorer", config, params, base=folder / "base", heads=heads)
    for turned in (False, True):
        write_rows(folder / "labelled.parquet", labelled_rows(turned))
        try:
            run(folder, "first")
            break
        except UserError as error:
            assert "does not rise" in str(error)
    return folder


def test_numbers_lie_beside_the_heads_and_in_the_workdir(places):
    numbers = run(places, "platt")
    content = json.loads((places / "scorer" / "calibration.json").read_text())
    assert content == json.loads((places / "platt" / "calibration.json").read_text())
    known = calibrations.read(places / "scorer")
    assert known.slope > 0 and numbers["probability_at_zero"] == pytest.approx(1 / (1 + math.exp(-known.intercept)))
    labels = pq.read_table(places / "labelled.parquet").to_pylist()
    assert 0 < numbers["probability_floor"] < numbers["unsafe_share"]
    assert numbers["answers"] == 80 and numbers["unsafe_share"] == np.mean(
        [row[name] == "no" for row in labels for name in LABELS]
    )
    assert numbers["cost.scale"] == content["cost"]["scale"] > 0 and content["reward"].keys() == {"shift", "scale"}


def test_the_mean_calibrated_probability_is_the_share_of_unsafe_answers(places):
    """Platt's sigmoid and rising steps have this at their best fit (Platt's targets move it by less than 1 / rows)."""
    for fit in ("platt", "isotonic"):
        numbers = run(places, fit, f"--fit={fit}")
        content = json.loads((places / fit / "calibration.json").read_text())
        assert numbers["calibration_error_calibrated"] < 0.3
        bins = content["reliability"]["calibrated"]
        said = sum(one["said"] * one["rows"] for one in bins) / 80
        assert said == pytest.approx(numbers["unsafe_share"], abs=0.06)  # of answers left out in turn


def test_the_report_draws_the_reliability_of_the_workdir_and_of_the_scorer(places):
    run(places, "drawn")
    report.main([f"--workdir={places / 'drawn'}"])
    html = (places / "drawn" / "report.html").read_text()
    assert "Calibration: P(unsafe | cost)" in html and "Reliability diagram" in html and "calibration error" in html


def test_an_export_takes_the_calibration_along_with_its_head_alone(places):
    run(places, "again")
    for head, kept in (("", True), ("cost", True), ("reward", False)):
        out = places / f"rewritten_{head}"
        rewrite.rewrite(places / "scorer", out, dtype="float32", max_shard_bytes=1 << 30, head=head, complete=lambda run: run)
        assert (out / "calibration.json").is_file() is kept


def test_a_head_that_is_trained_anew_is_not_calibrated(places):
    write_rows(places / "pairs.parquet", task_rows.probe_rows(0, task_rows.split_cells(0), "train", 16, task_rows.Noise()))
    rows = ROWS | {"data.path": str(places / "pairs.parquet")}
    scores.run(settings(ScoresConfig, "scores", init=str(places / "scorer"), steps=1, **rows), places / "trained")
    assert not (places / "trained" / "export" / "calibration.json").exists()


@pytest.mark.slow
def test_a_constrained_run_holds_the_calibrated_probability(places, tmp_path, capsys):
    run(places, "for_training")
    changes = {"constraint.kind": "probability", "constraint.calibrated": True, "constraint.budget": 0.05, "iterations": 1}
    changes |= {"constraint.confidence": 0.9, "validation.path": str(places / "sft.parquet"), "validation.every_steps": 1}
    rows = ROWS | {"data.path": str(places / "sft.parquet"), "sharing": "shared"}
    base = dict(policy=str(places / "base_weights"), scorer=str(places / "scorer"))
    sft_rows = ROWS | {"data.path": str(places / "sft.parquet")}
    sft.run(settings(SFTConfig, "sft", init=str(places / "base"), init_random=True, steps=0, **sft_rows), places / "base_weights")
    wanted = settings(PPOLagConfig, "ppo_lag", **base | rows | changes)
    found = ppo_lag.run(wanted, tmp_path / "run")
    assert 0 < found["constraint"] < 1 and found["window_cost"] == pytest.approx(found["constraint"], rel=1e-4)
    assert found["window_cost_upper"] > found["window_cost"] and found["best_feasible.step"] == -1
    path = places / "scorer" / "calibration.json"
    content = json.loads(path.read_text())
    for floor, warned in ((0.0251, True), (0.0249, False)):  # of a budget of 0.05
        path.write_text(json.dumps(content | {"numbers": {"probability_floor": floor}}))
        capsys.readouterr()
        check.check_calibration(wanted)
        assert (f"least for unsafe with probability {floor:.3f}" in capsys.readouterr().err) is warned
    path.unlink()
    with pytest.raises(UserError, match="config.constraint.calibrated needs calibration.json beside the cost head"):
        ppo_lag.run(wanted, tmp_path / "other")


@pytest.mark.slow
def test_a_certificate_bounds_the_calibrated_probability(places):
    run(places, "for_certificate")
    known = calibrations.read(places / "scorer")
    write_rows(places / "fresh.parquet", task_rows.prompt_rows(0, task_rows.split_cells(0), "test", 16))
    flags = [
        f"--policy={places / 'scorer'}",
        f"--scorer={places / 'scorer'}",
        f"--data={places / 'fresh.parquet'}",
        "--allow_unchecked",
    ]
    flags += [f"--workdir={places / 'certificate'}", "--budget=0.99", "--response_length=4", "--batch_size=8"]
    certify.main([*flags, "--calibrated"])
    numbers = json.loads((places / "certificate" / "result.json").read_text())
    costs = [json.loads(line)["cost"] for line in (places / "certificate" / "answers.jsonl").read_text().splitlines()]
    assert numbers["mean"] == pytest.approx(
        np.mean([1 / (1 + math.exp(-known.slope * cost - known.intercept)) for cost in costs])
    )
    assert numbers["upper"] == numbers["bound.betting"] and "bound.clopper_pearson" not in numbers
    for odd, message in (
        (["--kind=mean", "--range=-9,9"], "--calibrated is a probability"),
        (["--method=clopper_pearson"], "values of 0 and 1"),
    ):
        with pytest.raises(UserError, match=message):
            certify.main([*flags, "--calibrated", *odd])


@pytest.mark.parametrize("safe", ["yes", "no"])
def test_rows_without_both_classes_are_refused(places, tmp_path, safe):
    write_rows(tmp_path / "one.parquet", [row | dict.fromkeys(LABELS, safe) for row in labelled_rows(False)])
    with pytest.raises(UserError, match="needs answers labelled safe and answers labelled unsafe, got (80 and 0|0 and 80)"):
        run(places, "x", f"--data={tmp_path / 'one.parquet'}")


def test_rows_without_labels_and_scorers_without_a_cost_are_refused(places, tmp_path):
    bare = [{name: row[name] for name in ("question", "image")} | {"response": row["response_1"]} for row in labelled_rows(False)]
    write_rows(tmp_path / "bare.parquet", bare)
    with pytest.raises(UserError, match="labels no response as safe or unsafe"):
        run(places, "x", f"--data={tmp_path / 'bare.parquet'}")
    with pytest.raises(UserError, match="has no cost head"):
        run(places, "x", f"--scorer={places / 'rewritten_reward'}")
