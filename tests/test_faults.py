"""A short form of benchmarks/faults.py: kills at random moments change nothing, damaged inputs are used or refused in one line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ENVIRONMENT

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "faults.py"


def found(*flags: str) -> tuple[dict, str]:
    """The line that the benchmark prints, and everything that it says."""
    done = subprocess.run([sys.executable, SCRIPT, *flags], capture_output=True, text=True, env=ENVIRONMENT, timeout=1500)
    assert done.stdout, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr


@pytest.mark.slow
def test_twenty_kills_in_every_stage_change_no_number_and_leave_no_debris():
    line, said = found("--kills=20", "--inputs=0")
    assert (line["kills"], line["faults"]) == (20, 0), said
    assert line["killed_runs"] >= 7, said  # of at most three kills each


@pytest.mark.slow
def test_five_hundred_damaged_inputs_are_used_or_refused_in_one_line():
    line, said = found("--kills=0", "--inputs=500")
    assert (line["inputs"], line["faults"]) == (500, 0), said
    for kind, outcomes in line["by_kind"].items():
        assert outcomes.get("ok", 0) and outcomes.get("clear", 0), (kind, outcomes)  # damage of both sorts was tried


@pytest.fixture
def inputs(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import fault_inputs

    return fault_inputs


def test_each_sort_of_fault_is_seen_as_one(inputs, monkeypatch):
    monkeypatch.setattr(inputs, "HANG_S", 1)

    def fail(error: BaseException):
        def call():
            raise error

        return call

    def loop():
        while True:
            pass

    calls = {
        "ok": lambda: None,
        "clear": fail(inputs.UserError("one line")),
        "long": fail(inputs.UserError("two\nlines")),
        "silent": fail(AssertionError("a row is gone")),
        "traceback": fail(ZeroDivisionError()),
        "hang": loop,
    }
    assert [inputs.outcome("", call)[0] for call in calls.values()] == list(calls)
