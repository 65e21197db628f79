"""Parts of the report: damaged files of a workdir, numbers, and curves with gaps."""

import base64
import json

import numpy as np
import pytest
from test_report_page import write

from srlhfv_jax.cli import report as command
from srlhfv_jax.errors import UserError
from srlhfv_jax.report import build, figure, page, plots, workdir


def test_a_line_cut_by_a_kill_is_skipped_and_a_broken_one_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 0, "loss": 1.5}\n{"step": 1, "lo')
    assert len(workdir.read(tmp_path).stages[0].rows) == 1
    file.write_text('{"step": 0, "loss": 1.5}\n{"step": 1, "lo\n{"step": 2, "loss": 1.25}\n')
    with pytest.raises(UserError, match="metrics.jsonl:2 is not JSON .*: remove that line"):
        workdir.read(tmp_path)
    file.unlink()
    (tmp_path / "result.json").write_text("[1]")
    with pytest.raises(UserError, match="must hold one JSON object, got list"):
        workdir.read(tmp_path)


def test_folders_without_a_run_are_refused(tmp_path):
    with pytest.raises(UserError, match="expected result.json, metrics.jsonl or samples.jsonl"):
        build.write_report(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        command.main([f"--workdir={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match="--workdir is needed"):
        command.main([])


def test_a_row_with_a_damaged_picture_or_none_is_still_shown(tmp_path):
    rows = [
        {"question": "a ?", "answers": {"sft": "plain text"}},
        {"images_png_base64": ["!!"], "question": "b ?", "answers": None},
    ]
    rows += [{"images_png_base64": [base64.b64encode(b"<svg onload=x>").decode()], "question": "c ?", "answers": {}}]
    write(tmp_path / "samples.jsonl", rows)
    html = build.write_report(tmp_path, tmp_path / "page.html").read_text()
    assert html.count("no picture") == 1 and html.count("picture unreadable") == 2 and "plain text" in html


def test_half_surrogates_in_an_answer_are_shown_as_question_marks(tmp_path):
    (tmp_path / "samples.jsonl").write_text(json.dumps({"question": "q \ud800", "answers": {"sft": "a\udfff"}}) + "\n")
    assert "q ?" in build.write_report(tmp_path).read_text("utf-8")


def test_gaps_and_numbers_that_are_not_finite_are_left_out_of_curves():
    rows = ({"step": 0, "kl": 0.5}, {"step": 1}, {"step": 2, "kl": float("nan")}, {"step": 3, "kl": None}, {"step": 4, "kl": 1.5})
    steps, values = workdir.series(workdir.Stage("ppo", "ppo", rows, {}, {}), "kl")
    assert steps.tolist() == [0, 4] and values.tolist() == [0.5, 1.5]


def test_a_long_series_is_averaged_not_cut():
    rows = tuple({"step": step, "kl": step / 4} for step in range(5000))
    steps, values = workdir.series(workdir.Stage("ppo", "ppo", rows, {}, {}), "kl")
    assert len(steps) == workdir.POINTS and steps[-1] > 4990
    assert values == pytest.approx(steps / 4)


def test_the_running_mean_keeps_constants_and_short_series():
    assert plots.running_mean(np.full(50, 1.25)) == pytest.approx(1.25)
    assert plots.running_mean(np.array([0.5, 2.5])).tolist() == [0.5, 2.5]


def test_a_run_has_the_same_colour_whatever_stands_beside_it():
    assert figure.slots(["ppo_lag", "x"])["ppo_lag"] == figure.slots(["sft", "ppo", "ppo_lag"])["ppo_lag"]
    assert figure.slots(["ppo_lag, round 1", "ppo_lag, round 2"])["ppo_lag, round 2"] == figure.KNOWN["ppo_lag"]
    assert len(set(figure.slots(["a", "b", "ppo", "ppo_lag, round 1", "ppo_lag, round 2"]).values())) == 5
    many = figure.slots([f"run{i}" for i in range(20)])
    assert all(0 <= place < len(figure.LIGHT.lines) for place in many.values())


def test_numbers_are_written_for_people():
    assert [page.number(value) for value in (3, 12345, 0.125, 1e-7, True, "x<y")] == [
        "3",
        "12\u2009345",
        "0.125",
        "1.00e-07",
        "True",
        "x&lt;y",
    ]
