"""PPO-Lagrangian's policy fine-tuned on harmless rows: which policy, with which settings, and what is said of it."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from srlhfv_jax.config import QuickstartConfig, unread
from srlhfv_jax.configs import quickstart
from srlhfv_jax.parsing import parse
from srlhfv_jax.quickstart import interventions
from srlhfv_jax.quickstart.pipeline import Pipeline, checksum, read_rows, write_rows


def done(workdir, name: str, numbers: dict) -> None:
    """A step that is finished, with these numbers."""
    (workdir / name).mkdir(parents=True, exist_ok=True)
    record = {"seconds": 2.5, "numbers": numbers}
    (workdir / name / "done.json").write_text(json.dumps(record | {"checksum": checksum(record)}))


@pytest.fixture
def pipeline(tmp_path):
    made = Pipeline(parse(QuickstartConfig, quickstart.get_config("short")), tmp_path)
    done(tmp_path, f"round{made.settings.rounds}_ppo_lag", {"best_feasible.step": 3.0})
    return made


def test_the_policy_is_the_best_feasible_one_of_the_last_round_or_the_last(pipeline, tmp_path):
    name = f"round{pipeline.settings.rounds}_ppo_lag"
    assert interventions.constrained(pipeline) == tmp_path / name / "best_feasible"
    done(tmp_path, name, {"best_feasible.step": -1.0})
    assert interventions.constrained(pipeline) == tmp_path / name / "export"


def test_both_fine_tunings_differ_in_the_units_alone_and_all_their_settings_are_read(pipeline, tmp_path):
    policy = tmp_path / "policy"
    frozen, free = (interventions.tuning(pipeline, policy, file) for file in ("units.safetensors", ""))
    for settings in (frozen, free):
        unread.check(settings)
        assert settings.init == str(policy) and settings.steps > 0 and settings.evaluation != settings.data.path
    assert frozen.optimizer.frozen_units == "units.safetensors" and free.optimizer.frozen_units == ""
    same = dataclasses.replace(frozen, optimizer=dataclasses.replace(frozen.optimizer, frozen_units=""))
    assert same == free


def test_rows_are_harmful_and_harmless_answers_of_the_policy_and_harmless_rows_of_which_one_in_ten_is_held_out(
    pipeline, monkeypatch
):
    prompts = [{"question": f"q{n}", "image": b"", "harmful": "yes" if n % 3 == 0 else "no"} for n in range(7)]
    write_rows(pipeline.data / "pair_prompts.parquet", prompts)
    taught = [row | {"question": f"s{n}", "response": f"a{n}"} for n, row in enumerate(prompts * 5)]
    write_rows(pipeline.data / "sft.parquet", taught)
    said = SimpleNamespace(prompts=SimpleNamespace(tolist=lambda: [0, 1, 3, 5]), texts=["no", "yes", "", "well"])
    sampler = SimpleNamespace(mesh=None, answers=lambda *_: said)
    monkeypatch.setattr(pipeline, "sampler", lambda temperature: sampler)
    monkeypatch.setattr(pipeline, "prompts", lambda name: SimpleNamespace(rows=(), _replace=lambda rows: None))
    monkeypatch.setattr(interventions.checkpoints, "load", lambda *_: None)
    told = interventions._write_rows(pipeline, pipeline.workdir / "policy", pipeline.workdir / "rows")
    rows = {name: read_rows(pipeline.workdir / "rows" / f"{name}.parquet") for name in ("safe", "useful", "tune", "heldout")}
    assert [(row["question"], row["responses"]) for row in rows["safe"]] == [("q0", ["no"])]
    assert [(row["question"], row["responses"]) for row in rows["useful"]] == [("q1", ["yes"]), ("q5", ["well"])]
    harmless = [row["question"] for row in taught if row["harmful"] == "no"]
    assert [row["question"] for row in rows["heldout"]] == harmless[::10]
    assert [row["question"] for row in rows["tune"]] == [name for name in harmless if name not in harmless[::10]]
    assert told == {f"rows.{name}": len(of) for name, of in rows.items()}
