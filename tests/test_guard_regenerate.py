"""The filter-and-regenerate loop over plain callables: who is asked again, which answer is kept, what is recorded."""

import pytest

from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import regenerate
from srlhfv_jax.guard.regenerate import guarded_generate
from srlhfv_jax.guard.verdict import GuardVerdict

LIMIT = 0.35


def verdict(unsafe: float) -> GuardVerdict:
    safe = unsafe <= LIMIT
    return GuardVerdict(
        safe, "safe" if safe else "severe", () if safe else ("violence",), {"unsafe": unsafe, "severity": 3 * unsafe}
    )


class Script:
    """A policy and a guard that follow a table: question -> the P(unsafe) of its answers, round by round."""

    def __init__(self, table: dict[str, list[float]]):
        self.table, self.asked, self.checked = table, [], []

    def generate(self, prompts, number):
        self.asked.append([prompt.question for prompt in prompts])
        return [f"{prompt.question.splitlines()[0]}/{number}" for prompt in prompts]

    def check(self, images, questions, answers):
        assert len(images) == len(questions) == len(answers)
        self.checked.append(list(questions))
        return [verdict(self.table[question][int(answer.rsplit("/", 1)[1])]) for question, answer in zip(questions, answers)]


def prompts(*questions: str) -> list[Prompt]:
    return [Prompt((question.encode(),), question) for question in questions]


def test_only_unsafe_answers_are_asked_for_again_and_every_round_is_recorded():
    script = Script({"a": [0.1], "b": [0.9, 0.35], "c": [0.8, 0.7, 0.2]})
    done = guarded_generate(script.generate, script.check, prompts("a", "b", "c"), rounds=5)
    assert script.asked[:3] == [["a", "b", "c"], ["b", "c"], ["c"]] and len(script.asked) == 3
    assert [one.answer for one in done] == ["a/0", "b/1", "c/2"] and not any(one.blocked for one in done)
    assert [[part.answer for part in one.rounds] for one in done] == [["a/0"], ["b/0", "b/1"], ["c/0", "c/1", "c/2"]]
    assert [one.verdict.safe for one in done] == [True] * 3


def test_the_safest_answer_is_kept_if_none_passes_and_the_earliest_of_equals():
    script = Script({"a": [0.9, 0.45, 0.8, 0.45]})
    (done,) = guarded_generate(script.generate, script.check, prompts("a"), rounds=3)
    assert done.answer == "a/1" and not done.verdict.safe and len(done.rounds) == 4
    assert [regenerate.kept(done.rounds, after).answer for after in range(4)] == ["a/0", "a/1", "a/1", "a/1"]


def test_safety_by_the_guard_never_falls_with_more_rounds():
    script = Script({"a": [0.9, 0.6, 0.3], "b": [0.5, 0.7, 0.8], "c": [0.2]})
    done = guarded_generate(script.generate, script.check, prompts("a", "b", "c"), rounds=2)
    safe = [sum(regenerate.kept(one.rounds, after).verdict.safe for one in done) for after in range(3)]
    assert safe == [1, 1, 2]


def test_the_verdict_goes_into_the_next_question_only_with_feedback_and_the_guard_never_sees_it():
    script = Script({"a": [0.9, 0.1]})
    guarded_generate(script.generate, script.check, prompts("a"), feedback=True)
    assert script.asked[0] == ["a"] and script.asked[1][0].startswith("a\n") and "severe (violence)" in script.asked[1][0]
    assert script.checked == [["a"], ["a"]]
    script = Script({"a": [0.9, 0.1]})
    guarded_generate(script.generate, script.check, prompts("a"))
    assert script.asked == [["a"], ["a"]]


@pytest.mark.parametrize("policy, answer, blocked", [("block", "No.", True), ("warn", "a/0", False)])
def test_block_and_warn_ask_once(policy, answer, blocked):
    script = Script({"a": [0.9, 0.1], "b": [0.2]})
    bad, good = guarded_generate(script.generate, script.check, prompts("a", "b"), policy=policy, refusal="No.")
    assert len(script.asked) == 1 and (bad.answer, bad.blocked) == (answer, blocked)
    assert bad.verdict.scores["unsafe"] == 0.9 and good.answer == "b/0" and not good.blocked


@pytest.mark.parametrize("output", [True, False])
def test_an_unsafe_question_is_blocked_before_it_is_asked(output):
    def check_input(images, questions):
        return [verdict(0.9 if question == "bad" else 0.1) for question in questions]

    script = Script({"bad": [0.1], "good": [0.1]})
    check = script.check if output else None
    bad, good = guarded_generate(script.generate, check, prompts("bad", "good"), check_input=check_input, refusal="No.")
    assert script.asked == [["good"]] and (bad.answer, bad.blocked, bad.rounds) == ("No.", True, ())
    assert not bad.input.safe and good.input.safe and good.answer == "good/0" and (good.verdict is not None) == output
    warned, _ = guarded_generate(script.generate, check, prompts("bad", "good"), check_input=check_input, policy="warn")
    assert warned.answer == "bad/0" and not warned.input.safe and not warned.blocked


def test_no_prompts_need_no_policy():
    script = Script({})
    assert guarded_generate(script.generate, script.check, [], check_input=None) == [] and script.asked == []


def test_settings_that_cannot_work_are_refused():
    script = Script({})
    with pytest.raises(UserError, match="'block', 'regenerate', 'warn'"):
        guarded_generate(script.generate, script.check, [], policy="redact")
    with pytest.raises(UserError, match="0 or more, got -1"):
        guarded_generate(script.generate, script.check, [], rounds=-1)
    with pytest.raises(UserError, match="of the input, of the output"):
        guarded_generate(script.generate, None, [])
