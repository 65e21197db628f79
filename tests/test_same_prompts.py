"""The same prompts, answered while a run goes on: the file, what a resumption leaves of it, the page, trackers."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from srlhfv_jax.cli import flags
from srlhfv_jax.config import GuardConfig, PPOLagConfig, ScoresConfig, SFTConfig
from srlhfv_jax.data.rows import Example, Turn
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import answers, same_prompts
from srlhfv_jax.report import build
from srlhfv_jax.training import metrics


class Row:
    def __init__(self, row):
        self.row = row


class Prompts:
    """As much of `loader.Prepared` as is read."""

    def __init__(self, *examples):
        self.examples, self.rows = examples, tuple(map(Row, range(len(examples))))


def picture():
    file = io.BytesIO()
    Image.new("RGB", (5, 3), (9, 8, 7)).save(file, "PNG")
    return file.getvalue()


PROMPTS = Prompts(
    Example((picture(),), "What is it?", ()),
    Example((), "And now?", (), history=(Turn("user", "Hello."), Turn("assistant", "Hi."))),
)


def record(workdir, step, *texts, prompts=PROMPTS, verdicts=None):
    said = answers.make(range(len(texts)), texts, [len(text) for text in texts], [True] * len(texts), 1.0)
    scores = {"reward": np.array([step / 7, 0.5][: len(texts)]), "cost": np.array([-0.25, step / 3][: len(texts)])}
    same_prompts.record(metrics.Writer(workdir), prompts, step, said, scores, verdicts)


def lines(workdir):
    return [json.loads(line) for line in (workdir / same_prompts.FILE).read_text().splitlines()]


def test_each_prompt_has_its_answers_by_step(tmp_path):
    record(tmp_path, 0, "a cat", "well")
    record(tmp_path, 25, "a dog", "no")
    first, second = lines(tmp_path)
    assert (
        first["question"] == "What is it?" and len(first["images_png_base64"]) == 1 and second["history"][1]["content"] == "Hi."
    )
    assert list(first["answers"]) == ["0", "25"]
    assert second["answers"]["25"] == {"text": "no", "length": 2, "ended": True, "reward": 0.5, "cost": 25 / 3}


def test_a_run_that_goes_on_from_a_checkpoint_replaces_what_came_after_it(tmp_path):
    for step in (0, 10, 20):
        record(tmp_path / "killed", step, f"at {step}", "x")
    record(tmp_path / "killed", 10, "at 10", "x")
    for step in (0, 10):
        record(tmp_path / "whole", step, f"at {step}", "x")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")


def test_other_prompts_begin_anew(tmp_path):
    record(tmp_path, 0, "a cat", "well")
    record(tmp_path, 5, "a dog", prompts=Prompts(Example((), "Another?", ())))
    (row,) = lines(tmp_path)
    assert row["question"] == "Another?" and list(row["answers"]) == ["5"]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / same_prompts.FILE).write_text('{"number": 0}\n')
    with pytest.raises(UserError, match=rf"{same_prompts.FILE}:1 has no answers"):
        record(tmp_path, 5, "a dog", "no")


def test_the_report_shows_the_first_and_the_last_answer_and_some_between(tmp_path):
    for step in range(0, 200, 10):
        record(tmp_path, step, f"word {step}<b>", "x")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lambda": 0.5}\n')
    html = build.write_report(tmp_path).read_text()
    assert "How the same 2 prompts were answered over time" in html and "Hi." in html
    assert "word 0&lt;b&gt;" in html and "word 190&lt;b&gt;" in html and "<dt>step 190</dt>" in html
    assert 4 <= html.count("word ") <= 6
    assert "reward 27.14" in html  # 190 / 7


def strict(prompts, answers):
    """Long answers are unsafe, and of pictures nothing is read."""
    assert [prompt.question for prompt in prompts] == ["What is it?", "And now?"] and len(prompts[1].history) == 2
    unsafe = {"guard.unsafe": 0.875, "guard.severity": "moderate", "guard.categories": "weapon, fire"}
    safe = {"guard.unsafe": 0.125, "guard.severity": "safe", "guard.categories": ""}
    judged = [unsafe if len(answer) > 4 else safe for answer in answers]
    return [{"guard.unread": "no_vision"} if prompt.images else one for prompt, one in zip(prompts, judged)]


def test_a_guards_verdict_stands_in_the_row_in_trackers_and_on_the_page(tmp_path, monkeypatch):
    tables = []
    monkeypatch.setattr(metrics.Writer, "samples", lambda self, step, samples: tables.append((step, samples)))
    record(tmp_path, 0, "a cat", "well", verdicts=strict)
    record(tmp_path, 25, "a dog", "a fire", verdicts=strict)
    first, second = lines(tmp_path)
    assert first["answers"]["25"]["guard.unread"] == "no_vision" and "guard.unsafe" not in first["answers"]["25"]
    assert (second["answers"]["0"]["guard.severity"], second["answers"]["25"]["guard.unsafe"]) == ("safe", 0.875)
    assert [(step, samples[1].answer) for step, samples in tables] == [(int(at), one) for at, one in second["answers"].items()]
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "lambda": 0.5}\n')
    html = build.write_report(tmp_path).read_text()
    assert "guard: moderate: weapon, fire" in html and "guard: safe" in html and "guard: no_vision" in html
    assert "unsafe by the guard 0.88" in html


@pytest.mark.parametrize(
    "kind, command", [(SFTConfig, "sft"), (PPOLagConfig, "ppo_lag"), (GuardConfig, "guard"), (ScoresConfig, "scores")]
)
def test_a_guard_of_answers_that_are_never_drawn_is_refused(kind, command):
    with pytest.raises(UserError, match="log.guard would be ignored"):
        flags.stage(command, kind, ["--workdir=W", "--config.log.guard=G"], "doc")


@pytest.mark.parametrize("kind, command", [(GuardConfig, "guard"), (ScoresConfig, "scores")])
def test_stages_that_sample_nothing_refuse_it(kind, command):
    with pytest.raises(UserError, match="log.samples_every would be ignored.*sft and ppo_lag alone"):
        flags.stage(command, kind, ["--workdir=W", "--config.log.samples_every=5"], "doc")


@pytest.mark.parametrize("kind, command", [(SFTConfig, "sft"), (PPOLagConfig, "ppo_lag")])
def test_a_number_of_samples_without_their_interval_is_refused(kind, command):
    with pytest.raises(UserError, match="log.samples would be ignored: config.log.samples_every is 0"):
        flags.stage(command, kind, ["--workdir=W", "--config.log.samples=5"], "doc")
