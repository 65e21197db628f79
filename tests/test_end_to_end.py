"""`launch/end_to_end.sh --tiny`: every command of docs/from_zero.md, from rows to a folder that `transformers` loads."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from commands import on_path

SCRIPT = Path(__file__).parent.parent / "launch" / "end_to_end.sh"


@pytest.mark.slow
def test_every_stage_runs_from_rows_to_an_export(tmp_path):
    programs, workdir = tmp_path / "bin", tmp_path / "W"
    programs.mkdir()
    done = subprocess.run(
        [SCRIPT, "--tiny", f"--workdir={workdir}"],
        check=False,
        env=on_path(programs),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]

    def numbers(stage: str) -> dict:
        return json.loads((workdir / stage / "result.json").read_text())

    assert {"cost_model.mean_safe", "cost_model.mean_unsafe", "cost_model.sign_accuracy"} <= numbers("scores_measured").keys()
    assert {"lambda.final", "best_feasible.step", "validation.constraint"} <= numbers("ppo_lag").keys()
    assert {"threshold.input", "threshold.output"} <= numbers("guard").keys()
    assert {"base.model_cost", "sft.model_cost", "ppo_lag.vs_base.helpful.win_rate"} <= numbers("evaluation").keys()
    answers = [json.loads(line) for line in (workdir / "answers.jsonl").read_text().splitlines()]
    assert len(answers) == 16 and all(answer["verdict"]["severity"] for answer in answers)
    assert (workdir / "ppo_lag" / "report.html").is_file()

    logged = set().union(*(json.loads(line) for line in (workdir / "ppo_lag" / "metrics.jsonl").read_text().splitlines()))
    explained = set(re.findall(r"`([\w.]+)`", (SCRIPT.parent.parent / "docs" / "ppo_lag.md").read_text()))
    assert logged - {"step"} <= explained, "docs/ppo_lag.md says of every metric what a bad value means"

    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(workdir / "policy")
    assert model.config.model_type == "llava" and str(model.dtype) == "torch.bfloat16"
