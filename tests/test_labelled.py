"""Every head has labels to learn from, and how many is said."""

import dataclasses
import json

import pytest
import tiny_hf
from tiny_stages import settings

from srlhfv_jax.config import GuardConfig, ScoresConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import train as guard
from srlhfv_jax.runs import labelled
from srlhfv_jax.supervised import scores


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_hf.save(folder, tiny_hf.llama_config())
    return folder


def rows_of(path, *labels: dict) -> dict:
    """Plain rows with two answers each: where they lie, as settings."""
    plain = [{"prompt": f"w{6 + i} w7", "responses": [f"w{8 + i} w9", "w10"]} | label for i, label in enumerate(labels)]
    path.write_text("".join(json.dumps(row) + "\n" for row in plain))
    return {"data.path": str(path), "data.split": "", "data.response_length": 6}


HELPFUL, SAFER = {"chosen": 1}, {"safer": 0}
SIGNED = {"unsafe": [False, True]}
TIE = {"chosen": "tie"}


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("cost", (HELPFUL,), "cost has nothing to learn from: no pair says which answer is safer"),
        ("reward", (SAFER | SIGNED,), "reward has nothing to learn from: no pair says which answer is more helpful"),
        ("reward", (TIE | SIGNED,), "reward has nothing to learn from"),
        ("scores", (HELPFUL,), "cost has nothing to learn from"),
        ("scores", (SAFER | SIGNED,), "reward has nothing to learn from"),
        ("scores", (HELPFUL | SAFER,), "cost_sign has nothing to learn from: no answer is labelled safe or unsafe"),
    ],
)
def test_a_head_without_a_labelled_pair_is_refused(name, labels, message, llama, tmp_path):
    found = rows_of(tmp_path / "rows.jsonl", *labels * 4)
    with pytest.raises(UserError, match=message):
        scores.run(settings(ScoresConfig, name, init=str(llama), **found), tmp_path / "run")
    assert not (tmp_path / "run" / "export").exists()


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ((SIGNED,), {}, "categories has nothing to learn from"),
        (({"unsafe": [False, False]},), {}, "severity_unsafe has nothing to learn from"),
        (({"unsafe": [True, True], "category": "animal_abuse"},), {}, "severity_safe has nothing to learn from"),
        (({"harmful": True}, {"harmful": False}), {"category_weight": 0.0}, "output has nothing to learn from"),
    ],
)
def test_a_guard_without_labels_of_a_kind_or_of_a_part_is_refused(labels, changes, message, llama, tmp_path):
    found = rows_of(tmp_path / "rows.jsonl", *labels * 4) | changes
    with pytest.raises(UserError, match=message):
        guard.run(settings(GuardConfig, "guard", init=str(llama), taxonomy="beavertails", **found), tmp_path / "run")


def test_pairs_beside_a_guard_are_counted_too(llama, tmp_path):
    judged = SIGNED | {"category": "animal_abuse"}
    found = rows_of(tmp_path / "rows.jsonl", *[judged] * 4)
    wanted = settings(GuardConfig, "guard", init=str(llama), taxonomy="beavertails", **found)
    pairs = rows_of(tmp_path / "pairs.jsonl", *[HELPFUL] * 4)["data.path"]
    with pytest.raises(UserError, match="pairs.jsonl: cost has nothing to learn from"):
        guard.run(dataclasses.replace(wanted, pairs=dataclasses.replace(wanted.pairs, path=pairs)), tmp_path / "run")


def test_labelled_rows_are_said_kept_and_warned_of_below_a_hundred(llama, tmp_path, capsys):
    found = rows_of(tmp_path / "rows.jsonl", *[HELPFUL | SAFER | SIGNED] * 3, *[TIE | SIGNED] * 2, *[HELPFUL] * 4)
    scores.run(settings(ScoresConfig, "scores", init=str(llama), **found), tmp_path / "run")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [result[f"labelled.{name}"] for name in ("reward", "cost", "cost_sign")] == [7, 3, 5]
    said = capsys.readouterr().err
    assert (
        "labelled rows: reward 7, cost 3, cost_sign 5" in said
        and "warning: " in said
        and "cost learns from 3 labelled rows" in said
    )
    labelled.check("many.jsonl", {"reward": labelled.FEW, "cost": labelled.FEW - 1})
    said = capsys.readouterr().err
    assert "cost learns from 99" in said and "reward learns" not in said
