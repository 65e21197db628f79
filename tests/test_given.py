"""What a run is given is opened before any weights; what it trained is exported before it is measured; what is measured may change."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import tiny_hf
from safetensors.numpy import load_file
from tiny_stages import settings

from srlhfv_jax.checkpoint import provenance
from srlhfv_jax.cli import main
from srlhfv_jax.config import GuardConfig, PPOLagConfig, ScoresConfig, SFTConfig, to_dict
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import train as guard
from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.hf.load import load_pretrained
from srlhfv_jax.models import score_heads
from srlhfv_jax.ppo_lag import run as ppo_lag
from srlhfv_jax.runs import checkpoints
from srlhfv_jax.supervised import scores, sft


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A random Llama folder, `llama`, and twice eight pairs without pictures, `train.jsonl` and `test.jsonl`."""
    folder = tmp_path_factory.mktemp("text")
    tiny_hf.save(folder / "llama", tiny_hf.llama_config())
    for name, first in (("train", 5), ("test", 15)):
        lines = []
        for i in range(8):
            row = {"prompt": f"w{first + i} w6", "response_0": f"w{first + i} w9", "response_1": "w7 w8"}
            row |= {"better_response_id": i % 2, "safer_response_id": 1, "is_response_0_safe": False, "is_response_1_safe": True}
            lines.append(json.dumps(row | {"response_0_severity_level": 2, "response_1_severity_level": 0}) + "\n")
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def rows(text, **changes) -> dict:
    return {"data.path": str(text / "train.jsonl"), "data.split": "", "data.response_length": 6} | changes


STAGES = {
    "sft": (SFTConfig, sft.run, {}),
    "scores": (ScoresConfig, scores.run, {}),
    "guard": (GuardConfig, guard.run, {"taxonomy": "pku_saferlhf"}),
    "ppo_lag": (PPOLagConfig, ppo_lag.run, {}),
}
READ = [
    ("sft", "data.path", {}),
    ("scores", "evaluation", {}),
    ("guard", "calibration", {}),
    ("guard", "evaluation", {}),
    ("guard", "pairs.path", {}),
    ("guard", "pairs.evaluation", {"pairs.path": "train.jsonl"}),
    ("ppo_lag", "validation.path", {}),
    ("ppo_lag", "ptx.path", {"ptx.coef": 0.5}),
]


@pytest.mark.parametrize(("name", "setting", "more"), READ, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("state", ["missing", "split", "rows"])
def test_rows_that_cannot_be_read_are_refused_before_any_weights(text, tmp_path, monkeypatch, name, setting, more, state):
    def never(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr(checkpoints, "load_pretrained", never)
    monkeypatch.setattr(ppo_lag.check, "check_checkpoints", lambda settings: None)
    kind, run, wanted = STAGES[name]
    start = {"policy": str(text / "llama"), "scorer": "later"} if name == "ppo_lag" else {"init": str(text / "llama")}
    more = {key: str(text / value) if key.endswith("path") else value for key, value in more.items()}
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": 3}\n')
    changes = {"missing": {setting: str(text / "none.jsonl")}, "rows": {setting: str(empty)}}
    own = f"{setting.removesuffix('.path')}.split" if setting.endswith("path") else f"{setting}_split"
    changes["split"] = {setting: str(text / "test.jsonl"), own: "held[:3]"}
    with pytest.raises(UserError) as error:
        run(settings(kind, name, **(start | wanted | rows(text) | more | changes[state])), tmp_path / "run")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", ["reference", "scorer"])
@pytest.mark.parametrize("state", ["missing", "cut", "headless"])
def test_checkpoints_that_cannot_be_read_are_refused_before_any_weights(text, tmp_path, monkeypatch, setting, state):
    monkeypatch.setattr(ppo_lag, "load_models", lambda *_: pytest.fail("weights were read"))
    if state != "missing":
        tiny_hf.save(tmp_path / "other", tiny_hf.llama_config())
    if state == "cut":
        (tmp_path / "other" / "model.safetensors").write_bytes(b"\0" * 64)
    given = {"policy": str(text / "llama"), "scorer": str(text / "llama")} | {setting: str(tmp_path / "other")}
    with pytest.raises(UserError) as error:
        ppo_lag.run(settings(PPOLagConfig, "ppo_lag", **given, **rows(text)), tmp_path / "run")
    assert ("other" in str(error.value)) or (setting == "reference" and state == "headless")


def test_an_evaluation_that_fails_leaves_the_export_and_may_be_changed(text, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise MemoryError("in the middle of it")

    start = {"init": str(text / "llama"), "evaluation": str(text / "train.jsonl")} | rows(text)
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(scores, "score_pairs", fail)
        scores.run(settings(ScoresConfig, "scores", **start), tmp_path)
    assert "config.evaluation: 8 of its 8 rows are trained on too" in capsys.readouterr().err
    before = load_pretrained(tmp_path).heads
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 2
    changed = {"evaluation": str(text / "test.jsonl"), "evaluation_split": "[:6]"}
    done = scores.run(settings(ScoresConfig, "scores", **(start | changed)), tmp_path)
    said = capsys.readouterr().err
    assert "resumed from the checkpoint of step 2" in said and "trained on too" not in said and "6 of 6 rows" in said
    written = json.loads((tmp_path / "result.json").read_text())
    assert written.pop("seconds") > 0  # of this start
    assert 0 <= done["reward_model.pair_accuracy"] <= 1 and written == done
    after = load_pretrained(tmp_path).heads
    assert all((before[name]["kernel"] == after[name]["kernel"]).all() for name in ("reward", "cost"))


def test_settings_of_what_is_measured_may_change_and_those_of_what_is_trained_may_not():
    wanted = settings(GuardConfig, "guard")
    measured = dict(evaluation="x", evaluation_split="x", calibration="x", calibration_split="x", false_positive_rate=0.3)
    measured |= dict(evaluation_every=3, keep_best="guard.f1", patience=2)
    pairs = dataclasses.replace(wanted.pairs, evaluation="x", evaluation_split="x")
    now = dataclasses.replace(wanted, thresholds="one", pairs=pairs, **measured)
    provenance.check_same({"settings": to_dict(wanted)}, to_dict(now))
    constrained = settings(PPOLagConfig, "ppo_lag")
    other = dataclasses.replace(constrained.validation, path="x", split="x", judge="oracle", budget=0.5, every_steps=3)
    provenance.check_same({"settings": to_dict(constrained)}, to_dict(dataclasses.replace(constrained, validation=other)))
    pairs = dataclasses.replace(wanted.pairs, split="x")
    with pytest.raises(UserError, match="config.pairs.split"):
        provenance.check_same({"settings": to_dict(wanted)}, to_dict(dataclasses.replace(wanted, pairs=pairs)))


def scorer(text, folder):
    """The Llama with random heads of reward and cost."""
    loaded = load_pretrained(text / "llama")
    heads = score_heads.init(loaded.config, ("reward", "cost"), jax.random.key(0))
    return export_pretrained(folder, loaded.config, loaded.params, base=text / "llama", heads=heads)


@pytest.mark.parametrize("name", ["scores", "adapter", "guard", "ppo_lag"])
def test_export_takes_the_newest_checkpoint_of_an_unfinished_run(text, tmp_path, capsys, name):
    """What an export of the run at that step would be; the workdir stays as it is."""
    start = {"init": str(text / "llama")}
    if name == "ppo_lag":
        start = {"policy": str(text / "llama"), "scorer": str(scorer(text, tmp_path / "scorer")), "iterations": 2}
    changes = {"adapter": {"lora.rank": 2}, "guard": {"taxonomy": "pku_saferlhf", "category_weight": 0.0}}.get(name, {})
    stage = "scores" if name == "adapter" else name
    kind, run, _ = STAGES[stage]
    run(settings(kind, stage, **start, **changes, **rows(text)), tmp_path / "run")
    shutil.move(tmp_path / "run" / "export", tmp_path / "whole")
    before = sorted(path for path in (tmp_path / "run").rglob("*"))
    assert main.main(["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'out'}"]) == 0
    assert "the checkpoint of step 2" in capsys.readouterr().out and before == sorted((tmp_path / "run").rglob("*"))
    found, expected = ({path.name: path for path in (tmp_path / one).glob("*.safetensors")} for one in ("out", "whole"))
    assert found.keys() == expected.keys() and found
    for file, path in found.items():
        one, other = load_file(path), load_file(expected[file])
        assert one.keys() == other.keys()
        for tensor in one:
            np.testing.assert_array_equal(one[tensor], other[tensor])
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "manifests")
    assert main.main(["export", f"--workdir={tmp_path / 'run'}", f"--out={tmp_path / 'other'}"]) == 2
    assert "has no whole checkpoint" in capsys.readouterr().err
