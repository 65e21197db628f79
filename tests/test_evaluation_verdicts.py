"""Verdicts of judges on disk: never asked for twice, recorded judgements, written by people."""

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import stub_judge
from stub_judge import FIRST, ONE, Answered, reply, serving, words
from test_evaluation_judging import ALONE, PAIR, at, picture

from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.judging import pairwise
from srlhfv_jax.evaluation.judging.recorded import recorded_judge
from srlhfv_jax.evaluation.judging.store import Store
from srlhfv_jax.evaluation.judging.verdict import JudgeVerdict, Opinion, content_key, from_json, judge_all, to_json


def test_what_was_judged_is_never_asked_again(tmp_path):
    with serving(lambda number, body: Answered(reply(ONE))) as stub:
        first = at(stub.url, tmp_path / "v.jsonl")(ALONE)
        again = at(stub.url, tmp_path / "v.jsonl")(ALONE)
        assert first == again and len(stub.seen) == 1
        at(stub.url, tmp_path / "v.jsonl")(ALONE._replace(name="other/name"))
        assert len(stub.seen) == 1  # by content, not by name
        at(stub.url, tmp_path / "v.jsonl", model="judge-2")(ALONE)
        at(stub.url, tmp_path / "v.jsonl")(ALONE._replace(image=picture("PNG")))
        assert len(stub.seen) == 3


def test_equal_questions_of_several_threads_are_asked_once(tmp_path):
    with serving(lambda number, body: Answered(reply(ONE), delay_s=0.02)) as stub:
        verdicts = judge_all(at(stub.url, tmp_path / "v.jsonl", workers=8), [ALONE] * 8, workers=8)
    assert len(set(verdicts)) == 1 and len(stub.seen) == 1


def test_every_part_of_a_question_is_in_its_key():
    changed = [
        ALONE._replace(question="Why?"),
        ALONE._replace(answers=("beta",)),
        ALONE._replace(criterion="x"),
        ALONE._replace(image=picture("PNG")),
        PAIR,
        PAIR._replace(answers=("beta", "alpha")),
    ]
    keys = [content_key(one, "judge") for one in (ALONE, *changed)]
    assert len(set(keys)) == len(keys) and content_key(ALONE, "judge") != content_key(ALONE, "other")


RESUMED = """
import os, signal, sys
from pathlib import Path
import stub_judge
from srlhfv_jax.evaluation.judging import client, endpoint
from srlhfv_jax.evaluation.judging.store import Store
from srlhfv_jax.evaluation.judging.verdict import JudgeRequest, judge_all

url, path, fatal = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
settings = stub_judge.settings(url)
judge = endpoint.EndpointJudge(client.Client(settings, ""), Store(path), settings.model)
for number in range(10):
    if number == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    judge(JudgeRequest("x", None, f"question {number}", ("a",)))
"""


def test_a_killed_run_goes_on_without_repeating_a_call(tmp_path):
    def run(stub, fatal: int) -> int:
        arguments = [stub.url, str(tmp_path / "v.jsonl"), str(fatal)]
        place = Path(stub_judge.__file__).parent
        paths = {"PYTHONPATH": f"{place}:{place.parent}"}
        return subprocess.run([sys.executable, "-c", RESUMED, *arguments], env=paths).returncode

    with serving(lambda number, body: Answered(reply(ONE))) as stub:
        assert run(stub, 6) == -signal.SIGKILL and len(stub.seen) == 6
        with (tmp_path / "v.jsonl").open("ab") as file:
            file.write(b'{"key": "torn')  # a line that the kill cut
        assert run(stub, -1) == 0
    asked = [words(body) for body in stub.seen]
    assert len(asked) == len(set(asked)) == 10
    lines = (tmp_path / "v.jsonl").read_text().splitlines()
    assert len(lines) == 10 and all(json.loads(line)["reply"] for line in lines)


def test_threads_write_whole_lines(tmp_path):
    store = Store(tmp_path / "v.jsonl")
    verdict = JudgeVerdict((Opinion(1.0, -1.0, False),))

    def write(thread: int) -> None:
        for number in range(50):
            store.put(f"{thread}/{number}", ALONE, verdict, "reply\u2028with an odd separator " * 20)

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Store(tmp_path / "v.jsonl")
    assert all(again.get(f"{thread}/{number}") == verdict for thread in range(4) for number in range(50))


# recorded judgements, rules


def test_verdicts_of_one_run_are_recorded_judgements_of_the_next(tmp_path):
    with serving(lambda number, body: Answered(reply(FIRST))) as stub:
        verdicts = judge_all(at(stub.url, tmp_path / "v.jsonl"), pairwise.orders(PAIR))
    judge = recorded_judge(tmp_path / "v.jsonl")
    assert judge_all(judge, pairwise.orders(PAIR)) == verdicts
    assert judge(PAIR._replace(name="bench/2")) is None and judge(ALONE) is None


def test_people_may_write_as_little_as_they_know(tmp_path):
    rows = [
        {"name": "bench/1", "answers": ["alpha"], "opinions": [{"cost": 1}]},
        {"name": "bench/1", "answers": ["alpha"], "opinions": [{"cost": -2, "refusal": True}]},  # a second thought
    ]
    path = tmp_path / "people.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert recorded_judge(path)(ALONE) == JudgeVerdict((Opinion(None, -2.0, True),))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "people.jsonl:2 is not JSON"),
        ("[]", "people.jsonl:2 is a JSON list: expected one object per line"),
        ('{"name": "a", "answers": ["x"]}', "opinions must be a list of one or two, got None"),
        ('{"name": "a", "answers": ["x"], "opinions": [{"harm": 1}]}', "an opinion has the keys helpful, cost, refusal, label"),
        ('{"name": "a", "answers": ["x"], "opinions": [{"cost": "1"}]}', "helpful and cost are numbers, got '1'"),
        ('{"name": "a", "answers": ["x"], "opinions": [{}], "safer": 1}', "safer is the position of an answer, 0 or 1, got 1"),
        ('{"name": "a", "answers": ["x"], "opinions": [{"label": "1"}]}', "label is the number of a class, 0 or more, got '1'"),
        ('{"name": "a", "answers": ["x"], "opinions": [{"label": true}]}', "label is the number of a class, 0 or more, got True"),
        ('{"name": "a", "answers": ["x"], "opinions": [{"cost": 1e999}]}', "helpful and cost are numbers, got inf"),
        ('{"name": "a", "answers": ["x", "y"], "opinions": [{}, {}], "safer": 1.0}', "0 or 1, got 1.0"),
        ('{"answers": ["x"], "opinions": [{}]}', "a judgement needs a name and one answer per opinion"),
        ('{"name": "a", "answers": [["x"]], "opinions": [{}]}', "a judgement needs a name and one answer per opinion"),
        ('{"name": "' + "\udcff" + '"}', "people.jsonl:2 is not JSON"),
        ("[" * 100_000, "people.jsonl:2 is not JSON"),
        ("9" * 5000, "people.jsonl:2 is not JSON"),
    ],
)
def test_a_line_that_is_no_judgement_is_named(tmp_path, line, message):
    path = tmp_path / "people.jsonl"
    first = json.dumps({"name": "bench/1", "answers": ["alpha"], "opinions": [{}]})
    path.write_bytes(f"{first}\n{line}\n".encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message) as told:
        recorded_judge(path)
    assert len(str(told.value).removeprefix(str(path))) < 300


def test_verdicts_survive_json():
    verdict = JudgeVerdict((Opinion(2.0, -1.5, None), Opinion(None, None, True)), more_helpful=1, safer=None)
    assert from_json(json.loads(json.dumps(to_json(verdict)))) == verdict
