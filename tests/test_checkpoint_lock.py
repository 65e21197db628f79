"""One run in a workdir, and no workdir that is a URL."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training as tiny

from srlhfv_jax.checkpoint import lock
from srlhfv_jax.cli import flags, main
from srlhfv_jax.config import SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.runs.run import command

HOLD = "import sys, time; from srlhfv_jax.checkpoint import lock\nwith lock.held(sys.argv[1]): print('in', flush=True); time.sleep(99)"


@pytest.fixture
def other(tmp_path):
    """A process of another run that is in tmp_path/w."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "w")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "in\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def enters(workdir: Path) -> bool:
    """Whether a process of its own gets in."""
    code = HOLD.replace("time.sleep(99)", "pass")
    return subprocess.run([sys.executable, "-c", code, str(workdir)], capture_output=True).returncode == 0


def test_a_second_run_is_refused_by_name_until_the_first_is_gone(tmp_path, other, one_device, capsys):
    workdir = tmp_path / "w"
    named = f"{workdir} is in use by host {socket.gethostname()}, process {other.pid}: wait"
    for start in (lambda: tiny.train(workdir, one_device), lambda: command(lambda *_: {}, settings(), workdir)):
        with pytest.raises(UserError) as error:
            start()
        assert named in str(error.value)
    assert sorted(path.name for path in workdir.iterdir()) == ["run.lock"]  # nothing was written
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    assert named.split("process")[1].split(":")[0].strip() in (workdir / "run.lock").read_text()  # a dead one's name remains
    tiny.train(workdir, one_device, steps=1)
    assert "did not end in order" not in capsys.readouterr().err  # the same host: the system knows that it is dead
    assert (workdir / "run.lock").read_text() == ""


def settings() -> SFTConfig:
    return flags.stage("sft", SFTConfig, ["--workdir=w", "--config=sft.py:tiny"], "doc")[0]


def test_a_run_may_enter_its_own_workdir_again_and_leaves_it_once(tmp_path):
    with lock.held(tmp_path):
        with lock.held(tmp_path):
            pass
        assert not enters(tmp_path)
    assert enters(tmp_path)


def test_a_run_that_fails_leaves_its_workdir(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        raise ZeroDivisionError
    assert enters(tmp_path)


def test_a_run_of_another_host_that_left_no_end_is_named(tmp_path, capsys):
    (tmp_path / "run.lock").write_text("host elsewhere, process 12\n")
    with lock.held(tmp_path):
        assert "was in use by host elsewhere, process 12, which did not end in order" in capsys.readouterr().err
    (tmp_path / "run.lock").write_bytes(b"\xff" * 9000)  # whatever is in it
    with lock.held(tmp_path):
        assert len(capsys.readouterr().err) < 500


def test_a_disk_without_locks_is_said(tmp_path, capsys, monkeypatch):
    def none(file, how):
        raise OSError(lock.errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", none)
    with lock.held(tmp_path):
        assert "is on a disk without locks" in capsys.readouterr().err


PLACES = ["gs://bucket/run", "gs:/bucket/run", "s3://b", "hf://models/x", "file:///tmp/x", "HTTPS://x.y/z", "", "  "]


@pytest.mark.parametrize("place", PLACES)
def test_a_place_to_write_that_is_no_folder_of_this_machine_is_refused(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["--config=sft.py:tiny", "--config.init=m", "--config.data.path=d"]
    commands = (["sft", *given, f"--workdir={place}"], ["export", "--workdir=x", f"--out={place}"])
    for arguments in (*commands, ["quickstart", f"--workdir={place}"], ["report", f"--workdir={place}"]):
        assert main.main(arguments) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("is a URL" in said or "is no path" in said)
    assert not list(tmp_path.iterdir())


def test_the_home_folder_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "result.json").write_text(json.dumps({"loss": 0.5}))
    assert main.main(["report", "--workdir=~/run"]) == 0 and (tmp_path / "run" / "report.html").is_file()
    assert main.main(["report", "--workdir=~nobody-here/run"]) == 2
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("~")]
