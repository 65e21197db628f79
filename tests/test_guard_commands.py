"""`srlhfv moderate`, `generate --guard` and `serve` say what the guard and the policy behind them say. Tiny models."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from tiny_stages import picture_task, settings

from srlhfv_jax.cli import main
from srlhfv_jax.config import GuardConfig, SFTConfig
from srlhfv_jax.data import sources
from srlhfv_jax.data.loader import single_pass
from srlhfv_jax.data.quickstart import rows as task_rows
from srlhfv_jax.guard import Guard, judge, train as guard
from srlhfv_jax.quickstart.pipeline import write_rows
from srlhfv_jax.supervised import sft

ROWS = {"data.split": "", "data.prompt_length": 30, "data.response_length": 18, "data.batch_size": 8}
GREEDY = ("--temperature=0", "--response_length=12")


class Made(NamedTuple):
    """Workdirs after two steps each, a row, its picture as a file, and what the guard says of it."""

    policy: Path
    guard: Path
    rows: Path
    row: dict
    image: Path
    question: dict  # the verdict on the question, as JSON
    answer: dict  # on the question with its response


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = picture_task(tmp_path_factory.mktemp("guard"))
    rows = ROWS | {"data.path": str(folder / "sft.parquet")}
    sft.run(settings(SFTConfig, "sft", init=str(folder / "base"), init_random=True, **rows), folder / "policy")
    held = str(folder / "sft.parquet")
    wanted = settings(GuardConfig, "guard", init=str(folder / "policy"), taxonomy="embedded", calibration=held, **rows)
    guard.run(wanted, folder / "guard")
    few = task_rows.sft_rows(5, task_rows.split_cells(0), 6)
    write_rows(folder / "few.parquet", few)
    (folder / "0.png").write_bytes(few[0]["image"])
    loaded = Guard.load(folder / "guard", batch_size=1)
    asked = [(few[0]["image"],)], [few[0]["question"]]
    (question,), (answer,) = loaded.check_input(*asked), loaded.check_output(*asked, [few[0]["response"]])
    verdicts = (json.loads(json.dumps(verdict._asdict())) for verdict in (question, answer))
    return Made(folder / "policy", folder / "guard", folder / "few.parquet", few[0], folder / "0.png", *verdicts)


def same(found: dict, wanted: dict) -> bool:
    """Equal, with scores to five digits: they come from batches of other sizes."""
    assert found["scores"] == pytest.approx(wanted["scores"], abs=1e-5)
    return {**found, "scores": 0} == {**wanted, "scores": 0}


@pytest.mark.slow
def test_answers_that_a_guard_calls_unsafe_are_those_of_its_verdicts(made):
    examples = sources.load_examples(single_pass(str(made.rows)))
    answers = [example.responses[0] for example in examples]
    asked = ([example.images for example in examples], [example.question for example in examples])
    verdicts = Guard.load(made.guard).check_output(*asked, answers)
    unsafe_B = judge.unsafe_answers(str(made.guard), examples, answers, dtype="float32")
    assert unsafe_B.dtype == bool and unsafe_B.tolist() == [not verdict.safe for verdict in verdicts]


def run(capsys, *argv: str) -> dict:
    """What a command prints last, as JSON."""
    assert main.main(argv) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_moderate_prints_the_verdict_on_the_question_or_on_the_answer(made, capsys):
    given = ["moderate", f"--guard={made.guard}", f"--image={made.image}", f"--prompt={made.row['question']}"]
    assert same(run(capsys, *given), made.question)
    assert same(run(capsys, *given, f"--response={made.row['response']}"), made.answer)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["moderate", "--prompt=a"], "--guard is needed"),
        (["moderate", "--guard=no/such/folder", "--prompt=a"], "no/such/folder"),
        (["moderate", "--guard={guard}", "--prompt=a <image>"], "special_token_in_text"),
        (["moderate", "--guard={policy}", "--prompt=a"], "has no guard"),
        (["serve"], "--guard is needed"),
        (["serve", "--guard={guard}", "--queue=0"], "flag --queue=0"),
        (["serve", "--guard={guard}", "--port=0", "--lengths=64,x"], "--lengths must be whole numbers above 0"),
        (["serve", "--guard={guard}", "--port=0", "--scorer={policy}"], "has no score heads"),
        (["serve", "--guard={guard}", "--host=203.0.113.1", "--port=0"], "cannot listen at 203.0.113.1:0"),
    ],
)
def test_mistakes_are_one_line(made, capsys, argv, message):
    assert main.main([word.format(guard=made.guard, policy=made.policy) for word in argv]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def lines(out: Path) -> Sequence[dict]:
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.slow
def test_a_guard_judges_and_filters_without_a_web_library(made):
    """Only `serve` needs the extra of that name."""
    code = "import sys; sys.modules['starlette'] = sys.modules['uvicorn'] = None; from srlhfv_jax.cli.main import main; sys.exit(main({}))"
    for argv in (
        ["moderate", f"--guard={made.guard}", "--prompt=what is it ?"],
        [
            "generate",
            f"--policy={made.policy}",
            f"--guard={made.guard}",
            "--prompt=what is it ?",
            "--rounds=1",
            "--response_length=4",
        ],
    ):
        done = subprocess.run([sys.executable, "-c", code.format(argv)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    done = subprocess.run([sys.executable, "-c", code.format(["serve", f"--guard={made.guard}"])], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'srlhfv-jax[serve]'" in done.stderr


def test_generate_under_a_guard_records_every_round_and_warns_where_it_is_told_to(made, tmp_path, capsys):
    given = ["generate", f"--policy={made.policy}", f"--guard={made.guard}", f"--data={made.rows}", "--batch_size=8", *GREEDY]
    assert main.main([*given, "--rounds=2", f"--out={tmp_path / 'regenerate'}"]) == 0
    assert main.main([*given, "--check_input", "--on_unsafe=warn", f"--out={tmp_path / 'warn'}"]) == 0
    regenerated, warned = lines(tmp_path / "regenerate"), lines(tmp_path / "warn")
    assert len(regenerated) == len(warned) == 6
    for one, other in zip(regenerated, warned, strict=True):
        assert one["rounds"][-1]["verdict"]["safe"] or len(one["rounds"]) == 3
        assert not one["blocked"] and one["input"] is None
        assert one["verdict"] in [spoken["verdict"] for spoken in one["rounds"]]
        assert len(other["rounds"]) == 1 and other["input"]["severity"] in ("safe", "minor", "moderate", "severe")
        assert other["answer"] == other["rounds"][0]["answer"] == one["rounds"][0]["answer"]  # greedy
    assert same(warned[0]["input"], made.question)


@pytest.mark.slow
def test_serve_moderates_and_generates_until_sigterm(made):
    command = [sys.executable, "-m", "srlhfv_jax", "serve", f"--guard={made.guard}", f"--policy={made.policy}", "--port=0"]
    flags = ["--on_unsafe=warn", "--check_input", "--prompt_length=40", "--judged_length=30", "--token_variable=TOKEN"]
    environment = os.environ | {"TOKEN": "t-1"}
    process = subprocess.Popen(
        [*command, *GREEDY, *flags], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("listening at http://127.0.0.1:")
        token = {"Authorization": "Bearer t-1"}
        with httpx2.Client(base_url=line.split()[-1], headers=token, timeout=60) as http:
            asked = {"prompt": made.row["question"], "image": base64.b64encode(made.image.read_bytes()).decode()}
            assert same(http.post("/moderate", json=asked).json(), made.question)
            assert same(http.post("/moderate", json=asked | {"response": made.row["response"]}).json(), made.answer)
            answered = http.post("/generate", json=asked | {"rounds": 1}).json()
            assert answered["answer"] == answered["rounds"][0]["answer"] and same(answered["input"], made.question)
            refused = http.post("/moderate", json={"prompt": "a <image>"})
            assert (refused.status_code, "special_token_in_text" in refused.json()["error"]) == (422, True)
            for field, text in (("prompt", "why ? " * 5000), ("response", "no . " * 5000)):
                refused = http.post("/moderate", json={"prompt": "what ?"} | {field: text})
                assert (refused.status_code, f"{field}_too_long" in refused.json()["error"]) == (422, True)
            chat = {"model": made.policy.name, "messages": [{"role": "user", "content": made.row["question"]}], "seed": 5, "n": 2}
            first, again = (http.post("/v1/chat/completions", json=chat | {"temperature": 2.0}).json() for _ in range(2))
            texts, texts_again = ([choice["message"]["content"] for choice in one["choices"]] for one in (first, again))
            assert texts == texts_again and texts[0] != texts[1]
            assert http.post("/v1/chat/completions", json=chat | {"max_tokens": 13}).status_code == 400
            judged = http.post("/v1/moderations", json={"input": made.row["question"]}).json()["results"][0]
            assert set(judged["category_scores"]) == set(made.question["scores"]) - {"unsafe", "severity"}
            assert http.post("/v1/score", json=chat).status_code == 404
            assert [one["id"] for one in http.get("/v1/models").json()["data"]] == ["policy", "guard"]
            assert http.post("/moderate", json=asked, headers={"Origin": "https://x.example"}).status_code == 403
            assert http.post("/moderate", json=asked, headers={"Authorization": ""}).status_code == 401
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
        assert re.search(r"serve: compiled \d+ programs in \d+ s", process.stderr.read())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
