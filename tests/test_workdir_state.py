"""What a workdir holds beside its checkpoints, in any state: named in one line, or made again; nothing a kill left behind stays."""

import functools
import json
import os
import subprocess

import pytest
import tiny_training as tiny
from tiny_stages import settings

from srlhfv_jax.cli import flags
from srlhfv_jax.config import QuickstartConfig, SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf import export
from srlhfv_jax.parsing import parse
from srlhfv_jax.quickstart import pipeline
from srlhfv_jax.runs.run import command, record, start
from srlhfv_jax.training import loop, metrics

DAMAGED = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"3",
    b'"text"',
    b"\xff\xfe\x00",
    b"\0" * 40,
    b"[" * 99999,
    b'{"a": 1}\n{"a": 2}',
    b"1" * 5000,
]
short = lambda content: repr(content[:12])  # noqa: E731


@pytest.fixture
def started(tmp_path):
    """A workdir with checkpoints and the settings of its run."""
    wanted = settings(SFTConfig, "sft")
    command(functools.partial(record, lambda *_: {}), wanted, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    return tmp_path, wanted


@pytest.mark.parametrize("content", DAMAGED, ids=short)
def test_a_damaged_config_json_is_one_line_and_without_it_the_run_goes_on(started, content):
    workdir, wanted = started
    (workdir / "config.json").write_bytes(content)
    with pytest.raises(UserError) as error:
        command(lambda *_: {}, wanted, workdir)
    said = str(error.value)
    assert f"{workdir / 'config.json'}" in said and "\n" not in said and len(said) < 700
    if "remove it" in said:
        (workdir / "config.json").unlink()
        command(lambda *_: {"loss": 0.5}, wanted, workdir)


LINES = [
    b"{",
    b"[]",
    b"3",
    b"\xff",
    b'{"loss": 1.5}',
    b'{"step": "3"}',
    b'{"step": 2.5}',
    b'{"step": true}',
    b'{"step": null}',
    b"",
]


@pytest.mark.parametrize("line", LINES, ids=short)
def test_a_damaged_line_of_metrics_is_named(tmp_path, line):
    writer, path = metrics.Writer(tmp_path), tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 2}\n')
    before = path.read_bytes()
    with pytest.raises(UserError) as error:
        writer.cut_back(1)
    said = str(error.value)
    assert f"{path}:2" in said and "remove that line" in said and "\n" not in said and path.read_bytes() == before


def test_without_its_damaged_line_of_metrics_the_run_goes_on(tmp_path, one_device):
    with pytest.raises(loop.Preempted):
        tiny.train(tmp_path, one_device, stop=lambda step: step == 3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(b"{\n" + whole)
    with pytest.raises(UserError, match="metrics.jsonl:1 is not JSON"):
        tiny.train(tmp_path, one_device)
    path.write_bytes(whole)
    tiny.train(tmp_path, one_device, steps=3)
    assert [row["step"] for row in tiny.rows(tmp_path)] == [1, 2, 3]


def test_numbers_of_a_power_cut_at_the_end_of_metrics_are_left_out(tmp_path, one_device):
    tiny.train(tmp_path, one_device, steps=3)
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 700)
    tiny.train(tmp_path, one_device, steps=3)
    assert path.read_bytes() == whole


@pytest.fixture(scope="module")
def short_quickstart():
    return parse(QuickstartConfig, flags.load("quickstart.py:short"))


@pytest.mark.parametrize("content", [*DAMAGED, "seconds", "numbers", "type"], ids=short)
def test_a_stage_whose_done_json_is_damaged_is_run_again(tmp_path, short_quickstart, capsys, content):
    ran = []

    def run_stage(folder):
        ran.append(folder.name)
        return {"loss": 0.125, "best": None, "nan": float("nan")}

    def start() -> dict:
        return pipeline.Pipeline(short_quickstart, tmp_path).step("sft", run_stage)

    assert start()["loss"] == start()["loss"] == 0.125 and ran == ["sft"]
    path = tmp_path / "sft" / "done.json"
    found = json.loads(path.read_text())
    if content == "seconds":
        found["seconds"] += 1.0
    elif content == "numbers":
        del found["numbers"]["loss"]
    elif content == "type":
        found["numbers"]["loss"] = "0.125"
    path.write_bytes(json.dumps(found).encode() if isinstance(content, str) else content)
    capsys.readouterr()
    assert start()["loss"] == start()["loss"] == 0.125 and ran == ["sft", "sft"]
    assert capsys.readouterr().err.count("done.json is damaged: sft is run again") == 1


@pytest.mark.parametrize("content", [b"", b"PAR1", b"\0" * 99])
def test_damaged_rows_of_the_pipeline_are_one_line(tmp_path, content):
    pipeline.write_rows(tmp_path / "pairs.parquet", [{"question": "a", "chosen": 1}])
    assert pipeline.read_rows(tmp_path / "pairs.parquet") == [{"question": "a", "chosen": 1}]
    (tmp_path / "pairs.parquet").write_bytes(content)
    with pytest.raises(UserError, match="is damaged .*: remove it and .*done.json, and run the same command again"):
        pipeline.read_rows(tmp_path / "pairs.parquet")


def test_what_killed_exports_left_is_removed_at_the_next_start(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    other = subprocess.Popen(["sleep", "99"])
    names = [f".export.draft-0-{ended.pid}", f".best_feasible.draft-3-{os.getpid()}", f".export.previous-{ended.pid}"]
    kept = [f".other.draft-0-{other.pid}", ".export.draft-x", "export.draft-0-1", ".export.draft", "export"]
    for name in (*names, *kept, f".best_feasible.previous-{ended.pid}"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(name)
    try:
        start(settings(SFTConfig, "sft"), tmp_path)
    finally:
        other.kill()
        other.wait()
    left = {path.name for path in tmp_path.iterdir()} - {"config.json"}
    assert left == {*kept, "best_feasible"}  # killed between its two renames: the earlier one is back in its place
    assert (tmp_path / "best_feasible" / "model.safetensors").read_text() == f".best_feasible.previous-{ended.pid}"


def test_an_export_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append(str(b)), replace(a, b)))
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "model.safetensors").write_text("weights")
    export._replace(tmp_path / "export", tmp_path / "draft")
    named = order.index(str(tmp_path / "export"))
    assert {str(tmp_path / "draft" / "model.safetensors"), str(tmp_path / "draft")} <= set(order[:named])
    assert str(tmp_path) in order[named:]
