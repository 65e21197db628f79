"""`srlhfv report --watch`: the page follows the run."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from srlhfv_jax.errors import UserError
from srlhfv_jax.report import build, watch

REFRESH = '<meta http-equiv="refresh"'


class Enough(Exception):
    pass


def log(workdir, step):
    with (workdir / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": step, "loss": 1.25 / step}) + "\n")


def test_the_page_is_written_again_when_the_run_has_written_and_only_then(tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(watch, "write_report", lambda workdir, path, **more: written.append(more) or workdir / "report.html")
    looks = iter((lambda: None, lambda: log(tmp_path, 2), lambda: None, lambda: (tmp_path / "result.json").write_text("{}")))

    def sleep(seconds):
        assert seconds == watch.SECONDS
        change = next(looks, None)
        if change is None:
            raise Enough
        change()

    log(tmp_path, 1)
    with pytest.raises(Enough):
        watch.watch(tmp_path, None, sleep=sleep)
    assert written == [{"reload_seconds": watch.SECONDS}] * 3
    assert capsys.readouterr().out.count("wrote") == 1


def test_what_is_not_there_yet_is_said_once_and_waited_for(tmp_path, capsys):
    looks = iter((lambda: None, lambda: log(tmp_path, 1), lambda: None))

    def sleep(seconds):
        change = next(looks, None)
        if change is None:
            raise Enough
        change()

    with pytest.raises(Enough):
        watch.watch(tmp_path, None, sleep=sleep)
    assert capsys.readouterr().err.count("looking again") == 1
    assert REFRESH in (tmp_path / "report.html").read_text()
    with pytest.raises(UserError, match="does not exist"):
        watch.watch(tmp_path / "none", None)


def test_a_page_loads_itself_anew_only_while_it_is_watched(tmp_path):
    log(tmp_path, 1)
    assert REFRESH not in build.write_report(tmp_path).read_text()
    assert f'{REFRESH} content="5">' in build.write_report(tmp_path, reload_seconds=5).read_text()


def test_ctrl_c_ends_it_with_exit_code_130(tmp_path):
    log(tmp_path, 1)
    command = [sys.executable, "-m", "srlhfv_jax", "report", f"--workdir={tmp_path}", "--watch"]
    run = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until = time.monotonic() + 120
    while not (tmp_path / "report.html").exists() and time.monotonic() < until:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    assert run.wait(60) == 130
    run.stdout.close(), run.stderr.close()
