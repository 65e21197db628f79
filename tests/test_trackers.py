"""Trackers show a run and never stop it: stand-ins for wandb and trackio, and TensorBoard's own files."""

import json
import struct
import sys
import threading
import time
import types

import numpy as np
import pytest
import tiny_training as tiny
from PIL import Image

from srlhfv_jax.cli import flags
from srlhfv_jax.config import SFTConfig, stored, to_dict
from srlhfv_jax.errors import UserError
from srlhfv_jax.training import background, loop, metrics, trackers


class Shown:
    """What a stand-in was told."""

    def __init__(self):
        self.started, self.logged, self.finished = [], [], 0

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished += 1

    def init(self, **given):
        self.started.append(given)
        return self


def stand_in(monkeypatch, name, **more):
    """A module of that name on sys.path's side of the fence: what it is told is returned."""
    shown = Shown()
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace(origin="here")
    members = dict(init=shown.init, Settings=dict, Histogram=np.histogram, Image=lambda picture: picture.size, Table=dict)
    if name == "trackio":
        members |= {"Table": lambda columns, data: {"columns": columns, "data": data}}
    for member, value in (members | more).items():
        setattr(module, member, value)
    monkeypatch.setitem(sys.modules, name, module)
    return shown


def sample(number):
    answer = {"text": "No.", "length": 3, "reward": 0.25, "cost": -1.5}
    return trackers.Sample(number, "What is it?", (Image.new("RGB", (3, 2)),), answer)


@pytest.mark.parametrize("name", trackers.EXTRAS)
def test_a_tracker_is_told_what_metrics_hold_and_goes_on_under_its_id(tmp_path, monkeypatch, name):
    shown = stand_in(monkeypatch, name)
    writer = metrics.Writer(tmp_path, (name,), project="mine", settings={"seed": 3})
    writer.cut_back(0)
    writer.write(1, {"loss": 0.375})
    writer.histograms(1, {"reward": np.array([0.5, 1.25])})
    writer.close()
    assert shown.logged[0] == (1, {"loss": 0.375}) and list(shown.logged[1][1]) == ["histogram/reward"]
    assert shown.finished == 1
    writer.cut_back(1)
    writer.write(2, {"loss": 0.25})
    writer.close()
    first, second = shown.started
    assert first == second and first["project"] == "mine" and first["config"] == {"seed": 3} and first["resume"] == "allow"
    assert first["name"] == f"{tmp_path.name}-{json.loads((tmp_path / trackers.IDS).read_text())['id']}"
    writer.cut_back(0)  # a run that begins is another run
    writer.close()
    assert shown.started[2]["name"] != first["name"]
    assert tiny.rows(tmp_path) == []


def test_samples_are_a_table_with_pictures(monkeypatch, tmp_path):
    shown = stand_in(monkeypatch, "wandb")
    tracker = trackers.make("wandb")
    tracker.start(trackers.Run(tmp_path, 0, "mine", "ab12", {}))
    tracker.log(4, trackers.Record(samples=(sample(0), sample(1))))
    table = shown.logged[0][1]["samples"]
    assert table["columns"] == ["picture", "question", "text", "length", "reward", "cost"]
    assert table["data"][1] == [(3, 2), "What is it?", "No.", 3, 0.25, -1.5]


def test_wandb_is_told_nothing_of_command_line_console_or_code(monkeypatch, tmp_path):
    shown = stand_in(monkeypatch, "wandb")
    trackers.make("wandb").start(trackers.Run(tmp_path, 0, "mine", "ab12", {}))
    told = shown.started[0]["settings"]
    assert told["x_disable_meta"] and told["disable_git"] and told["console"] == "off" and told["save_code"] is False


def test_settings_that_trackers_get_have_no_secrets():
    given = ["--workdir=W", "--config.log.trackers=wandb", "--config.init=https://me:word@host/x?token=abc"]
    settings, _ = flags.stage("sft", SFTConfig, given, "doc")
    assert settings.log.trackers == ("wandb",)
    assert "word" not in str(to_dict(settings)) and "abc" not in str(to_dict(settings))


def tf_records(path):
    """Records of a file of TensorFlow's: length, checksum, bytes, checksum."""
    content, at = path.read_bytes(), 0
    while at < len(content):
        (size,) = struct.unpack_from("<Q", content, at)
        yield content[at + 12 : at + 12 + size]
        at += 12 + size + 4


def failing(when):
    class Failing(Shown):
        def init(self, **given):
            if when == "init":
                raise SystemExit("cannot log in at https://me:word@host")
            return super().init(**given)

        def log(self, values, step):
            if when == "log":
                raise ConnectionError("no route to host\nsecond line")

        def finish(self):
            if when == "finish":
                raise OSError("gone")

    return Failing()


@pytest.mark.parametrize("when", ("init", "log", "finish"))
def test_a_tracker_that_fails_is_said_once_and_the_run_is_the_same(tmp_path, one_device, monkeypatch, capsys, when):
    broken = failing(when)
    stand_in(monkeypatch, "wandb", init=broken.init)
    wanted, _ = tiny.train(tmp_path / "alone", one_device, steps=4)
    writer = metrics.Writer
    monkeypatch.setattr(metrics, "Writer", lambda workdir: writer(workdir, ("wandb",)))
    capsys.readouterr()
    final, _ = tiny.train(tmp_path / "told", one_device, steps=4)
    said = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert len(said) == 1 and "wandb" in said[0] and "second line" not in said[0] and "word" not in said[0]
    assert str(tmp_path / "told") in said[0]
    assert tiny.rows(tmp_path / "told") == tiny.rows(tmp_path / "alone")
    np.testing.assert_array_equal(*(one.params["text"]["embed"]["embedding"] for one in (final, wanted)))


def test_a_tracker_that_hangs_slows_nothing(tmp_path, monkeypatch, capsys):
    release = threading.Event()
    stand_in(monkeypatch, "wandb", init=lambda **given: release.wait())
    monkeypatch.setattr(background, "WAITING", 3)
    monkeypatch.setattr(background.Background.close, "__defaults__", (0.2,))
    writer = metrics.Writer(tmp_path, ("wandb",))
    writer.cut_back(0)
    began = time.monotonic()
    for step in range(1, 21):
        writer.write(step, {"loss": 1 / step})
    assert time.monotonic() - began < 5
    writer.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "behind by 3" in said[0]
    assert [row["step"] for row in tiny.rows(tmp_path)] == list(range(1, 21))
    release.set()


@pytest.mark.parametrize("name", trackers.EXTRAS)
def test_a_tracker_that_is_not_installed_is_named_before_anything_runs(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()  # wandb leaves a folder of its own name behind, which is no package
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UserError, match=rf"log.trackers names '{name}'.*pip install 'srlhfv-jax\[{name}\]'"):
        trackers.check((name,))
    trackers.check(())


def test_tensorboard_has_numbers_histograms_pictures_and_texts(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # tensorboardX would import it: seconds
    from tensorboardX.proto.event_pb2 import Event

    tracker = trackers.make("tensorboard")
    tracker.start(trackers.Run(tmp_path, 0))
    tracker.log(2, trackers.Record({"loss": 0.375}, {"cost": np.array([-0.5, 0.75])}, (sample(7),)))
    tracker.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    values = {value.tag: value for raw in tf_records(file) for value in Event.FromString(raw).summary.value}
    assert values["loss"].simple_value == 0.375
    assert values["cost"].histo.num == 2 and values["cost"].histo.min == -0.5
    picture = values["samples/7/picture_0"].image
    assert (picture.width, picture.height) == (3, 2)
    assert b"No." in values["samples/7/text_summary"].tensor.string_val[0]


def test_values_of_rows_reach_trackers_and_no_line_of_metrics(tmp_path, one_device, monkeypatch):
    shown = stand_in(monkeypatch, "wandb")
    writer = metrics.Writer
    monkeypatch.setattr(metrics, "Writer", lambda workdir: writer(workdir, ("wandb",)))

    def with_rows(step_fn):
        def step(state, batch):
            state, numbers = step_fn(state, batch)
            return state, numbers | {loop.ROWS: {"error": np.array([0.5, 0.25])}}

        return step

    tiny.train(tmp_path, one_device, steps=2, change=with_rows)
    assert [step for step, values in shown.logged if "histogram/error" in values] == [1, 2]
    assert all("error" not in row and "rows" not in row for row in tiny.rows(tmp_path))


def test_workdirs_of_before_know_no_trackers():
    before = {"log": {"every_steps": 10, "tensorboard": False}}
    later = {"trackers": [], "project": "srlhfv", "samples_every": 0, "samples": 8, "guard": ""}
    assert stored.current(before)["log"] == before["log"] | later
