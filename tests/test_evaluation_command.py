"""`srlhfv evaluate` on tiny random models of the embedded task, from flags to files."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from srlhfv_jax.cli import evaluate, report
from srlhfv_jax.data.quickstart import processor, rows
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import export_pretrained, load_config_and_processor
from srlhfv_jax.models import score_heads, vlm

PROMPTS = 10


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """A folder with two random policies, a scorer, and prompts; 10 of them, so that a batch of 8 leaves filler rows."""
    root = tmp_path_factory.mktemp("evaluate")
    base = processor.write_base(root / "base", patch=24, vision_layers=2, vision_width=16, text_layers=2, text_width=16, heads=2)
    config, _ = load_config_and_processor(base)
    create = jax.jit(functools.partial(vlm.init, config))
    for name, seed in (("a", 0), ("b", 1), ("scorer", 2)):
        key = jax.random.key(seed)
        ends = score_heads.init(config, ("reward", "cost"), key) if name == "scorer" else None
        export_pretrained(root / name, config, create(key), base=base, heads=ends)
    found = rows.prompt_rows(0, rows.split_cells(0), "test", PROMPTS)
    pq.write_table(pa.Table.from_pylist(found), root / "test.parquet")
    return root


def run(places: Path, policies: str, name: str, *more: str) -> tuple[Path, dict]:
    out = places / name
    named = ",".join(f"{policy}={places / policy}" for policy in policies)
    flags = [f"--policies={named}", f"--data={places / 'test.parquet'}", f"--workdir={out}"]
    evaluate.main([*flags, "--response_length=4", "--batch_size=8", *more])
    return out, json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module")
def judged(places):
    return run(places, "ab", "both", f"--scorer={places / 'scorer'}", "--judge=oracle", "--budget=-0.5", "--samples=4")


def test_oracle_and_models_judge_the_same_answers(judged):
    out, result = judged
    for name in ("a", "b"):
        assert result[f"{name}.prompts"] == PROMPTS and result[f"{name}.length"] <= 4
        assert {f"{name}.{key}" for key in ("helpful", "cost", "evasion_rate", "model_reward", "model_cost")} <= result.keys()
    assert result["oracle_budget"] == -0.5 and "b.vs_a.helpful.win_rate" in result
    answers = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    assert [row["row"] for row in answers] == list(range(PROMPTS))
    assert len((out / "samples.jsonl").read_text().splitlines()) == 4


def test_the_report_reads_what_evaluate_writes(judged):
    out, _ = judged
    report.main([f"--workdir={out}"])
    html = (out / "report.html").read_text()
    assert "<h2>Policies</h2>" in html and "OpenMoji" in html and "<h2>Against the baseline</h2>" in html


def test_learned_models_alone_can_judge_greedy_answers(places):
    out, result = run(places, "a", "greedy", f"--scorer={places / 'scorer'}", "--temperature=0", "--split=[:8]")
    assert np.isfinite(result["a.model_cost"]) and "a.helpful" not in result
    found = json.loads((out / "score_distributions.json").read_text())
    assert found["judge"] == "models" and len(found["policies"]["a"]["cost"]) == 8


def test_a_scorer_is_measured_on_pairs_with_its_own_with_shuffled_and_with_grey_pictures(places):
    found = rows.probe_rows(0, rows.split_cells(0), "test", 12, None)
    pq.write_table(pa.Table.from_pylist(found), places / "pairs.parquet")
    out = places / "measured"
    evaluate.main(
        [
            f"--scorer={places / 'scorer'}",
            f"--pairs={places / 'pairs.parquet'}",
            f"--workdir={out}",
            "--batch_size=8",
            "--split=[:11]",
        ]
    )
    result = json.loads((out / "result.json").read_text())
    assert result["reward_model.pairs"] <= 11 and 0 <= result["head_agreement"] <= 1
    for name in ("reward_model.pair_accuracy", "cost_model.sign_accuracy", "cost_model.calibration_error"):
        values = [result[f"{name}{suffix}"] for suffix in ("", "_image_shuffled", "_image_blanked")]
        assert all(0 <= value <= 1 for value in values)
    # the scores are continuous in the picture: another one changes the calibration, if only a little
    assert len({result[f"cost_model.calibration_error{suffix}"] for suffix in ("", "_image_shuffled", "_image_blanked")}) == 3
    assert "reward_model.mean_image_shuffled" not in result


def test_pairs_need_a_scorer_with_each_head_once(places, tmp_path):
    flags = [f"--pairs={places / 'test.parquet'}", f"--workdir={tmp_path}", "--batch_size=8"]
    with pytest.raises(UserError, match="--pairs measures reward and cost models: give --scorer"):
        evaluate.main(flags)
    with pytest.raises(UserError, match="has no score heads"):
        evaluate.main([*flags, f"--scorer={places / 'a'}"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policies=sft"], "--policies must be name=path,name=path, got 'sft'"),
        (["--policies=a=x,a=y"], "--policies names 'a' twice"),
        (["--policies=a=x", "--judge=models"], "--judge=models needs --scorer=PATH"),
        (["--policies=a=x", "--batch_size=7"], "must be a positive multiple of 8"),
        (["--policies=a=/nowhere"], "'/nowhere' is not a folder"),
        (["--polices=a=x"], "did you mean 'policies'"),
        (["--policies=a=x", "--columns=question=wording"], "wording"),
    ],
)
def test_mistakes_are_told_in_one_line(places, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as error:
        evaluate.main([f"--data={places / 'test.parquet'}", f"--workdir={tmp_path}", "--batch_size=8", *flags])
    assert "\n" not in str(error.value)


def test_a_scorer_without_heads_is_named(places, tmp_path):
    with pytest.raises(UserError, match="has no score heads"):
        run(places, "ab", str(tmp_path / "x"), f"--scorer={places / 'a'}")
