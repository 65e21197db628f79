"""`sv.load`: a policy answers, a scorer scores, a guard checks; what a checkpoint is not, it says in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_hf
from safetensors.numpy import save_file

import srlhfv_jax as sv
from srlhfv_jax.data import chat
from srlhfv_jax.data.taxonomies import SEVERITIES
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import Guard, Turn, scoring
from srlhfv_jax.hf import weights
from srlhfv_jax.hf.heads import PLACE, SCORES
from srlhfv_jax.hf.load import load_config_and_processor

WIDTH = tiny_hf.llama_config().hidden_size
TALK = [{"role": "user", "content": "w6"}, {"role": "assistant", "content": "w7 w8"}]
ROWS = [
    {"question": "w7 w9 w11", "response": "w12 w6"},
    {"question": "w8", "response": "w14 w15 w16 w17"},
    {"question": "w9 w10", "response": "w6", "history": TALK},
]
PAIRS = [{"question": "w7 w9 w11", "responses": ["w12 w6", "w20"]}, {"question": "w8", "responses": ["w5", "w14 w15 w16 w17"]}]


def write_guard(folder: Path, *parts: str) -> None:
    rng, codec = np.random.default_rng(5), chat.codec(load_config_and_processor(folder)[1])
    tensors = {"severity.kernel": rng.normal(size=WIDTH), "severity.bias": np.array([0.25, -0.5, -1.25])}
    tensors |= {"categories.kernel": rng.normal(size=(2, WIDTH)), "categories.bias": np.array([0.125, -0.75])}
    save_file({name: value.astype(np.float32) for name, value in tensors.items()}, folder / weights.GUARD_FILE)
    about = {"categories": ["harm", "fraud"], "thresholds": dict.fromkeys(parts, 0.55), "max_pixels": 0}
    about |= PLACE | {"severities": list(SEVERITIES), "template": scoring.template_hash(codec)}
    (folder / weights.GUARD_META).write_text(json.dumps(about))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """`policy`, `scorer`, `guard`, which has the scorer's heads as well, and guards of `questions` and of `answers` alone."""
    folder = tmp_path_factory.mktemp("models")
    tiny_hf.save(folder / "policy", tiny_hf.llama_config())
    rng = np.random.default_rng(3)
    shutil.copytree(folder / "policy", folder / "scorer")
    heads = {name: rng.normal(size=WIDTH).astype(np.float32) for name in ("reward", "cost")}
    save_file(heads, folder / "scorer" / weights.HEADS_FILE)
    (folder / "scorer" / weights.HEADS_META).write_text(json.dumps(SCORES | {"heads": sorted(heads)}))
    for name, start, parts in (
        ("guard", "scorer", ("input", "output")),
        ("questions", "policy", ("input",)),
        ("answers", "policy", ("output",)),
    ):
        shutil.copytree(folder / start, folder / name)
        write_guard(folder / name, *parts)
    return folder


@pytest.fixture(scope="module")
def models(folder) -> dict[str, sv.Model]:
    return {name: sv.load(folder / name, batch_size=2) for name in ("policy", "scorer", "guard", "questions", "answers")}


def test_a_checkpoint_is_what_its_heads_say(models):
    kinds = {name: model.kinds for name, model in models.items()}
    assert kinds.pop("policy") == ("policy",) and kinds.pop("scorer") == ("scorer",)
    assert kinds == {"guard": ("scorer", "guard"), "questions": ("guard",), "answers": ("guard",)}


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("policy", "score", "is a policy: call .generate(rows), not .score(rows)"),
        ("policy", "check", "is a policy: call .generate(rows), not .check(rows)"),
        ("scorer", "generate", "is a scorer: call .score(rows), not .generate(rows)"),
        ("scorer", "check", "is a scorer: call .score(rows), not .check(rows)"),
        ("questions", "score", "is a guard: call .check(rows), not .score(rows)"),
        ("guard", "generate", "is a scorer and guard: call .score(rows) or .check(rows), not .generate(rows)"),
    ],
)
def test_what_a_checkpoint_is_not_it_says_in_one_line(models, folder, name, call, message):
    ask = {"generate": models[name].generate, "score": models[name].score, "check": models[name].check}[call]
    with pytest.raises(UserError) as refused:
        ask(ROWS)
    assert str(refused.value) == f"{folder / name} {message}"


def test_an_answer_depends_on_its_seed_and_place_and_on_no_other_row(models):
    policy = models["policy"]
    answers = policy.generate(ROWS, max_tokens=6)
    assert policy.generate(ROWS, max_tokens=6) == answers and policy.generate(ROWS[:1], max_tokens=6) == answers[:1]
    assert policy.generate(ROWS, max_tokens=6, seed=1) != answers
    twice = policy.generate([ROWS[0], ROWS[0]], max_tokens=6)
    assert twice[0] == answers[0] != twice[1]
    greedy = policy.generate([ROWS[0], ROWS[0]], max_tokens=6, temperature=0)
    assert greedy[0] == greedy[1] and all(len(answer.split()) <= 6 for answer in answers + greedy)


def test_a_pair_has_the_scores_that_its_responses_have_alone(models):
    scorer = models["scorer"]
    alone = scorer.score(ROWS[:2])
    assert sorted(alone) == ["cost", "reward"] and alone["cost"].shape == (2,)
    pairs = scorer.score(PAIRS)
    for head in alone:
        assert pairs[head].shape == (2, 2)
        assert pairs[head][[0, 1], [0, 1]] == pytest.approx(alone[head], abs=1e-5)
        assert abs(pairs[head][0, 1] - pairs[head][0, 0]) > 1e-3
    assert models["guard"].score(ROWS[:2])["cost"] == pytest.approx(alone["cost"], abs=1e-5)


def test_turns_before_the_question_are_scored_too(models):
    cost = models["scorer"].score(ROWS)["cost"]
    assert abs(models["scorer"].score([ROWS[2] | {"history": []}])["cost"][0] - cost[2]) > 1e-3


def test_verdicts_are_those_of_the_guard(models, folder):
    guard = Guard.load(folder / "guard")
    asked = [()] * 3, [row["question"] for row in ROWS]
    histories = [(), (), tuple(Turn(turn["role"], turn["content"]) for turn in TALK)]
    questions = guard.check_input(*asked, histories)
    answers = guard.check_output(*asked, [row["response"] for row in ROWS], histories)
    verdicts = models["guard"].check(ROWS)
    assert len(verdicts) == 3
    for verdict, question, answer in zip(verdicts, questions, answers, strict=True):
        assert verdict.question.scores == pytest.approx(question.scores, abs=1e-5)
        assert len(verdict.answers) == 1 and verdict.answers[0].scores == pytest.approx(answer.scores, abs=1e-5)
        assert (verdict.question.safe, verdict.answers[0].safe) == (question.safe, answer.safe)
    (pair,) = models["guard"].check(PAIRS[:1])
    assert pair.answers[0].scores == pytest.approx(answers[0].scores, abs=1e-5) and len(pair.answers) == 2
    assert models["guard"].check([{"question": "w8"}])[0].answers == ()
    assert models["answers"].check(ROWS[:1])[0].question is None


@pytest.mark.parametrize(
    ("name", "call", "rows", "message"),
    [
        ("scorer", "score", [ROWS[0], {"question": "w8"}], "row 1 cannot be scored: it has 0 responses, expected one or two"),
        ("scorer", "score", [PAIRS[0] | {"question": " "}, PAIRS[1]], "row 0 cannot be scored: empty_question"),
        ("scorer", "score", {"question": "w8"}, "must be a sequence of rows"),
        ("policy", "generate", [{"question": "w8"}, {"question": ""}], "row 1 cannot be answered: empty_question"),
        ("policy", "generate", [{"question": "w8"}, {"question": "w6", "image": b"x"}], "row 1 cannot be answered: not_an_image"),
        ("policy", "generate", [], "rows is empty: expected at least one row"),
        ("policy", "generate", "no/such.jsonl", "no/such.jsonl"),
        ("questions", "check", ROWS, "judges questions only, and row 0 has a response: leave it out"),
        ("answers", "check", [ROWS[0], {"question": "w8"}], "judges answers only, and row 1 has no response"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(models, name, call, rows, message):
    ask = {"generate": models[name].generate, "score": models[name].score, "check": models[name].check}[call]
    with pytest.raises(UserError) as refused:
        ask(rows)
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"temperature": -0.5}, "temperature must be from 0"),
        ({"temperature": "hot"}, "temperature must be float, got 'hot'"),
        ({"max_tokens": 0}, "max_tokens must be from 1"),
        ({"seed": 0.5}, "seed must be int"),
    ],
)
def test_a_wrong_number_is_refused(models, how, message):
    with pytest.raises(UserError, match=message):
        models["policy"].generate(ROWS, **how)


def test_a_system_prompt_is_read_before_the_question(folder, models):
    told = sv.load(folder / "scorer", system_prompt="w21 w22")
    rows = [ROWS[1] | {"history": [{"role": "system", "content": "w21 w22"}]}]
    cost = told.score(ROWS[1:2])["cost"]
    assert cost == pytest.approx(models["scorer"].score(rows)["cost"], abs=1e-5)
    assert abs(cost - models["scorer"].score(ROWS[1:2])["cost"]) > 1e-3


def test_a_wrong_start_is_refused(folder):
    with pytest.raises(UserError, match="dtype must be one of 'float32', 'bfloat16', got 'float8'"):
        sv.load(folder / "policy", dtype="float8")
    with pytest.raises(UserError, match="is not a folder"):
        sv.load(folder / "none")
