"""The stage that learns from pairs: its numbers of other models by content, its terms, and runs from rows to an export."""

import json
import shutil

import numpy as np
import pytest
from tiny_stages import numbers as lines, rows, settings, supervised_and_scorer, write_rows

from srlhfv_jax.config import PreferenceConfig, to_dict
from srlhfv_jax.configs import preference as presets
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import seen
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.preference import numbers, reference, run as preference


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A supervised policy, a scorer, and pairs of the embedded task."""
    return supervised_and_scorer(tmp_path_factory.mktemp("task"))


def of(task, **changes) -> PreferenceConfig:
    given = rows(task) | {"data.path": str(task / "pairs.parquet"), "data.batch_size": 4, "optimizer.learning_rate": 1e-3}
    return settings(PreferenceConfig, "preference", **(given | {"init": str(task / "sft")} | changes))


def computed(said: str) -> list[int]:
    """How many numbers each model had to be asked for."""
    return [int(line.split()[-3]) for line in said.splitlines() if "to compute" in line]


@pytest.fixture(scope="module")
def done(task):
    """A run, whose numbers of the reference others may use."""
    held = {"evaluation": str(task / "pairs.parquet"), "evaluation_every": 1}
    result = preference.run(of(task, **held), task / "dpo")
    return task / "dpo", result


def test_training_starts_at_log_two_and_ends_in_an_export(task, done):
    workdir, result = done
    first, second = (line for line in lines(workdir) if "loss" in line)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6) and abs(first["winner_log_ratio"]) < 1e-5
    assert second["loss"] != first["loss"] and result["rows"] == 24
    assert result["evaluation.loss"] < np.log(2) and 0 < result["evaluation.accuracy"] <= 1
    assert load_pretrained(workdir).config.vision is not None
    assert sum(result[f"share.{kind}"] for kind in ("safe_safe", "safe_unsafe", "unsafe_safe", "unsafe_unsafe")) == 1


def test_a_second_method_over_the_same_rows_asks_for_no_number_and_a_new_answer_for_one(task, done, tmp_path, capfd):
    shared = {"reference_cache": str(done[0] / "reference"), "steps": 1}
    preference.run(of(task, loss="square", axis="safer", **shared), tmp_path / "ipo")
    assert computed("".join(capfd.readouterr())) == [0]
    changed = task_rows.topic_rows(3, task_rows.split_cells(0), "train", 24, task_rows.Noise())
    changed[5] = changed[5] | {"response_1": "it is for the kitchen"}
    write_rows(tmp_path / "pairs.parquet", changed)
    preference.run(of(task, **shared, **{"data.path": str(tmp_path / "pairs.parquet")}), tmp_path / "one")
    assert computed("".join(capfd.readouterr())) == [1]


@pytest.mark.slow
def test_numbers_of_other_weights_are_not_used(task, done, tmp_path, capfd):
    shared = {"reference_cache": str(done[0] / "reference"), "steps": 0}
    preference.run(of(task, init=str(done[0]), **shared), tmp_path / "second")
    assert computed("".join(capfd.readouterr())) == [48]


@pytest.mark.slow
def test_a_damaged_file_of_numbers_is_named_and_computed_again(task, done, tmp_path, capfd):
    preference.run(of(task, steps=0), tmp_path / "run")
    (part,) = (tmp_path / "run" / "reference").rglob("*.npz")
    whole = part.read_bytes()
    for content in (whole[: len(whole) // 2], b"not ours", whole.replace(b"\x01", b"\x02")):
        part.write_bytes(content)
        capfd.readouterr()
        preference.run(of(task, steps=0, reference_cache=str(tmp_path / "run" / "reference")), tmp_path / "again")
        said = "".join(capfd.readouterr())
        assert str(part) in said and computed(said) == [48]
        for file in part.parent.glob("*.npz"):
            file.unlink()
        part.write_bytes(whole)


def test_numbers_are_read_as_they_were_written(tmp_path):
    kept = {bytes([number]) * numbers.KEY: -1.375 * number for number in range(3)}
    numbers.write(tmp_path, "weights", kept)
    assert numbers.read(tmp_path, "weights") == kept
    assert numbers.read(tmp_path, "others") == {}
    assert numbers.missing({"a": kept, "b": {}}, [tuple(kept)]) == set(kept)


@pytest.mark.slow
def test_adapters_start_from_the_reference_under_them(task, tmp_path):
    result = preference.run(of(task, steps=1, **{"lora.rank": 2, "lora.alpha": 2.0}), tmp_path / "lora")
    assert result["loss"] == pytest.approx(np.log(2), abs=1e-6)


@pytest.mark.slow
def test_a_pass_that_was_killed_computes_what_it_had_not_written(task, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(reference, "PART", 16)
    stage = of(task, steps=0)
    preference.run(stage, tmp_path / "whole")
    parts = sorted((tmp_path / "whole" / "reference").rglob("*.npz"))
    kept = numbers.read(parts[0].parent.parent, parts[0].parent.name)
    assert len(parts) == 3 and len(kept) == 48
    parts[1].unlink()
    capfd.readouterr()
    again = of(task, steps=0, reference_cache=str(tmp_path / "whole" / "reference"))
    preference.run(again, tmp_path / "again")
    assert computed("".join(capfd.readouterr())) == [16]
    assert numbers.read(parts[0].parent.parent, parts[0].parent.name) == kept  # to the last bit


def test_a_finished_run_started_again_has_the_same_numbers(task, done):
    again = preference.run(of(task, evaluation=str(task / "pairs.parquet"), evaluation_every=1), done[0])
    assert {name: again[name] for name in done[1]} == done[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"axis": "scores", "scores.scorer": "scores"},
        {"axis": "scores", "scores.helpful": "dpo", "scores.harmless": "dpo"},
        {"margin.path": "dpo", "margin.weight": 0.25},
        {"transform": "safedpo", "unsafe_offset": 2.0},
        {"loss": "unlearn", "reference": "none", "axis": "safer"},
        {"mean": True, "reference": "none", "offset": 0.5, "sft_coef": 1.0},
        {"reference": "dpo"},
        {"loss": "square", "replay.path": "pairs.parquet"},
    ],
    ids=["scorer", "policies", "margin", "safedpo", "unlearn", "simpo", "reference", "replay"],
)
def test_every_source_of_numbers_trains(task, done, tmp_path, changes):
    paths = {
        key: str(task / value) for key, value in changes.items() if key != "axis" and value in ("scores", "dpo", "pairs.parquet")
    }
    result = preference.run(of(task, **(changes | paths)), tmp_path / "run")
    assert ("replay_loss" in result) == ("replay.path" in changes)
    assert np.isfinite(result["loss"]) and json.loads((tmp_path / "run" / "result.json").read_text())["loss"] == result["loss"]


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"axis": "scores"}, "config.axis is 'scores': give config.scores.scorer"),
        ({"axis": "scores", "scores.helpful": "x"}, "needs both policies"),
        ({"loss": "square", "flip": 0.25}, "config.flip is 0.25 and would be ignored"),
        ({"loss": "unlearn"}, "config.reference is '' and would be ignored"),
        ({"margin.path": "x", "margin.weight": 1.0}, "margin.weight must be below 1"),
        ({"reference": "none", "margin.path": "x"}, "config.margin is measured against references"),
        ({"mean": True}, "is SimPO, which has no reference"),
        ({"margin.path": "nowhere"}, "'nowhere' is not a folder"),
        ({"axis": "scores", "scores.scorer": "{task}/sft"}, "has no reward head"),
        ({"margin.path": presets.modpo().margin.path}, "nothing without config.margin.path"),
        ({"blind": presets.bpo().blind}, "nothing without config.blind"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(task, tmp_path, changes, said):
    changes = {key: value.format(task=task) if isinstance(value, str) else value for key, value in changes.items()}
    with pytest.raises(UserError, match=said):
        preference.run(of(task, **changes), tmp_path / "run")


def test_a_reference_with_another_tokenizer_is_refused(task, tmp_path):
    other = shutil.copytree(task / "sft" / "export", tmp_path / "other")
    words = json.loads((other / "tokenizer.json").read_text())
    first, second, *_ = words["model"]["vocab"]
    ids = words["model"]["vocab"]
    ids[first], ids[second] = ids[second], ids[first]
    (other / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(UserError, match="config.reference=.* has another tokenizer"):
        preference.run(of(task, reference=str(other)), tmp_path / "run")


def test_the_rows_of_every_model_that_was_read_are_known_as_seen(task, done, tmp_path):
    other = str(tmp_path / "other.jsonl")
    read = {"margin.path": str(done[0]), "replay.path": other, "reference": str(task / "scores")}
    (tmp_path / "config.json").write_text(json.dumps(to_dict(of(task, **read))))
    known = seen.record(str(tmp_path))
    workdirs = {source.workdir for source in known.sources}
    assert workdirs >= {tmp_path, task / "sft"} and other in {source.data.path for source in known.sources}
    assert not known.unknown
    (tmp_path / "config.json").write_text(json.dumps(to_dict(of(task, reference="none", mean=True))))
    assert not seen.record(str(tmp_path)).unknown


def test_two_scorers_on_one_backbone_share_no_number(task, tmp_path):
    other, model = shutil.copytree(task / "scores" / "export", tmp_path / "other"), of(task).model
    same = reference._fingerprint(str(task / "scores"), model, None)
    assert reference._fingerprint(str(other), model, None) == same  # wherever it lies
    heads = bytearray((other / "score_heads.safetensors").read_bytes())
    heads[-1] ^= 1
    (other / "score_heads.safetensors").write_bytes(bytes(heads))
    assert reference._fingerprint(str(other), model, None) != same


def test_an_axis_that_no_row_has_is_refused(task, tmp_path):
    write_rows(tmp_path / "ties.parquet", [{"question": "how?", "responses": ["so", "not so"]}] * 4)
    with pytest.raises(UserError, match="none of the 4 examples can be used as preference"):
        preference.run(of(task, **{"data.path": str(tmp_path / "ties.parquet")}), tmp_path / "run")
