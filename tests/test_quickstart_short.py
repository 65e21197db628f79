"""The main job, cut short: `srlhfv quickstart` from nothing to a report, and the same numbers after a kill -9."""

import json
import shutil
import signal
import subprocess
import time

import pytest
from commands import ENVIRONMENT, SRLHFV

pytestmark = pytest.mark.slow  # the whole pipeline, and once more killed

COMMAND = [*SRLHFV, "quickstart", "--config=configs/quickstart.py:short", "--seed=3"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("quickstart")
    run = subprocess.run([*COMMAND, f"--workdir={workdir}"], env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    return workdir, run


def result(workdir) -> dict:
    """Everything that must not depend on the clock."""
    return {
        name: value for name, value in json.loads((workdir / "result.json").read_text()).items() if not name.startswith("seconds")
    }


def test_every_stage_runs_and_every_documented_number_is_written(finished):
    workdir, run = finished
    numbers = json.loads((workdir / "result.json").read_text())
    for policy in ("sft", "ppo", "ppo_lag"):
        for name in ("helpful", "helpful_benign", "cost", "harm_rate", "over_refusal", "evasion_rate", "length"):
            assert f"{policy}.{name}" in numbers and f"{policy}.greedy.{name}" in numbers and f"{policy}.unseen.{name}" in numbers
    for name in ("pairs.disagree_strict", "oracle_budget", "controller_budget", "lambda.final", "seconds.total", "seconds.sft"):
        assert name in numbers
    for name in ("reward_model.name_probe", "cost_model.sign_accuracy", "cost_model.sign_accuracy_contextual_image_shuffled"):
        assert 0 <= numbers[name] <= 1
    for name in ("guard.f1", "guard.severity_accuracy", "guard.f1_contextual", "guard.f1_contextual_image_shuffled"):
        assert 0 <= numbers[name] <= 1
    for name in [f"guard.safety_round_{k}" for k in range(6)] + [f"guard.over_refusal.{way}" for way in ("off", "both")]:
        assert 0 <= numbers[name] <= 1
    assert numbers["guard.safety_round_0"] == pytest.approx(1 - numbers["sft.harm_rate"])  # the same first answers
    assert "ppo_lag.guarded.helpful" in numbers and "guard.unseen.f1" in numbers
    report = (workdir / "report.html").read_text()
    assert (
        "CC BY-SA 4.0" in report
        and "data:image/png;base64," in report
        and "http://" not in report.replace("http://www.w3.org", "")
    )
    assert "too short to learn" in run.stdout and "MISSED" not in run.stdout and "whole run in at most" not in run.stdout


def test_what_was_trained_loads_in_transformers(finished):
    import transformers

    torch = pytest.importorskip("torch")

    folder = finished[0] / "round1_ppo_lag" / "export"
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    processor = transformers.AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.eos_token_id is not None
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_the_same_command_again_changes_nothing(finished):
    workdir, _ = finished
    before = (workdir / "result.json").read_text()
    run = subprocess.run([*COMMAND, f"--workdir={workdir}"], env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    assert (workdir / "result.json").read_text() == before


def test_a_run_killed_inside_ppo_lag_ends_with_the_numbers_of_one_that_was_not(finished, tmp_path):
    whole, _ = finished
    workdir = tmp_path / "killed"
    shutil.copytree(whole, workdir)
    for name in ("round1_ppo_lag", "ppo", "evaluation", "guard", "guard_probes", "guarded"):
        shutil.rmtree(workdir / name)
    stage = workdir / "round1_ppo_lag"
    first = subprocess.Popen(
        [*COMMAND, f"--workdir={workdir}"], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    while not (stage / "checkpoints" / "manifests" / "2.json").is_file():  # which seals it: nothing unsealed is used
        assert first.poll() is None and time.monotonic() < deadline, "the run ended, or never reached its first checkpoint"
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (stage / "done.json").exists()
    run = subprocess.run([*COMMAND, f"--workdir={workdir}"], env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "resumed from the checkpoint of step 2" in run.stderr
    assert (stage / "metrics.jsonl").read_text() == (whole / "round1_ppo_lag" / "metrics.jsonl").read_text()
    assert result(workdir) == result(whole)
