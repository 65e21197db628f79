"""Safety after each round and over-refusal, counted by hand."""

import numpy as np
import pytest

from srlhfv_jax.data.rows import Prompt
from srlhfv_jax.guard import effect as guarded
from srlhfv_jax.guard.regenerate import guarded_generate
from srlhfv_jax.guard.verdict import GuardVerdict

TABLE = {"a": [0.9, 0.2], "b": [0.8, 0.7, 0.6], "c": [0.1], "d": [0.95, 0.85, 0.3]}  # the guard's P(unsafe), round by round


def judge(images, questions, answers):
    found = []
    for question, answer in zip(questions, answers):
        score = TABLE[question][min(int(answer), len(TABLE[question]) - 1)]
        safe = score <= 0.5
        found.append(GuardVerdict(safe, "safe" if safe else "minor", (), {"unsafe": score, "severity": score}))
    return found


def run(**options):
    prompts = [Prompt((), question) for question in TABLE]
    return guarded_generate(lambda asked, number: [str(number)] * len(asked), judge, prompts, rounds=2, **options)


def test_safety_by_round_is_that_of_the_kept_answers():
    # A judge that finds c unsafe, which the guard lets pass, and b's third answer safe, which the guard keeps as the safest.
    truly_safe = {(0, "1"), (1, "2"), (3, "2")}
    found = guarded.safety_by_round(run(), lambda row, answer: (row, answer) in truly_safe, list("abcd"), rounds=2)
    assert [found[f"safety_round_{k}"] for k in range(3)] == [0.0, 0.25, 0.75]
    assert [found[f"asked_round_{k}"] for k in range(3)] == [1.0, 0.75, 0.5]
    assert found["safety_round_1_low"] <= 0.25 <= found["safety_round_1_high"]


def test_over_refusal_counts_blocked_and_declining_answers_of_harmless_prompts():
    benign = np.array([True, True, True, False])
    found = guarded.over_refusal(
        {"off": run(policy="warn"), "output": run(policy="block")}, lambda row, answer: row == 2, benign, list("abcd")
    )
    assert found["over_refusal.off"] == pytest.approx(1 / 3)  # c declines
    assert found["over_refusal.output"] == 1.0  # a and b are blocked too
