"""Signs of a run that goes wrong: each is told when it shows, once, and nothing is told of a run that goes well."""

import json

import numpy as np
import pytest
from tiny_stages import settings

from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.ppo_lag import alarms
from srlhfv_jax.report import workdir
from srlhfv_jax.report.warnings import warning_section

WELL = dict(entropy=0.8, length=16.5, harm_rate_model=0.2, window_cost=0.3, budget=0.1, cost_explained_variance=0.4) | {
    "lambda": 2.5
}
VALIDATION = {
    "validation.refusal_rate": 0.25,
    "validation.over_refusal": 0.2,
    "validation.unsafe_rate": 0.3,
    "validation.harm_rate": 0.4,
}


def run(numbers: list[dict], memory=None) -> tuple[list[str], dict]:
    """The texts of a run with these numbers, all others being well."""
    memory, texts = alarms.start({} if memory is None else memory), []
    for step, changed in enumerate(numbers, 1):
        texts += alarms.after_step(settings(PPOLagConfig, "ppo_lag"), memory, step, WELL | changed)
    return texts, memory


@pytest.mark.parametrize(
    ("name", "wrong", "long"),
    [
        ("entropy", {"entropy": 0.039}, alarms.FEW),
        ("length", {"length": 5.4}, alarms.FEW),
        ("length", {"length": 50.0}, alarms.FEW),
        ("multiplier", {"lambda": 5.0}, alarms.MANY),
        ("critics", {"cost_explained_variance": -0.01}, alarms.MANY),
    ],
)
def test_a_sign_is_told_when_it_has_shown_for_long_enough_and_once(name, wrong, long):
    start = [{}] * alarms.FIRST
    assert run(start + [wrong] * (long - 1))[0] == []
    texts, memory = run(start + [wrong] * (long + 30))
    assert texts == [f"iteration {alarms.FIRST + long}: {alarms.TEXTS[name]}"]
    assert alarms.told(memory) == {f"alarm.{name}": alarms.FIRST + long}
    assert run(start + ([wrong] * (long - 1) + [{}]) * 4)[0] == []  # not in a row


def test_a_multiplier_at_its_largest_is_no_sign_while_the_cost_is_within_budget():
    assert run([{}] * 5 + [{"lambda": 5.0, "window_cost": 0.09}] * 50)[0] == []


def test_what_is_remembered_survives_a_checkpoint():
    _, whole = run([{}] * 5 + [{"entropy": 0.01}] * 2)
    notes = json.loads(json.dumps({"alarms": whole}))
    texts = alarms.after_step(settings(PPOLagConfig, "ppo_lag"), alarms.start(notes), 8, WELL | {"entropy": 0.01})
    assert len(texts) == 1 and notes["alarms"]["told"] == {"entropy": 8}


@pytest.mark.parametrize("wrong", [{"validation.refusal_rate": 0.95}, {"validation.over_refusal": 0.5}])
def test_a_policy_that_declines_everything_is_told_of_after_two_validations(wrong):
    _, memory = run([{}] * 6)
    texts = [
        alarms.after_validation(memory, step, VALIDATION | change)
        for step, change in ((1, wrong), (2, {}), (3, wrong), (4, wrong), (5, wrong))
    ]
    assert [bool(one) for one in texts] == [False, False, False, True, False] and "declines nearly everything" in texts[3][0]


def test_a_scorer_that_sees_less_harm_than_the_oracle_is_told_of():
    _, memory = run([{"harm_rate_model": 0.05}] * 6)
    assert alarms.after_validation(memory, 6, VALIDATION | {"validation.unsafe_rate": 0.19}) == []
    (text,) = alarms.after_validation(memory, 9, VALIDATION | {"validation.unsafe_rate": 0.21})
    assert text.startswith("iteration 9: the oracle calls more answers unsafe than the cost model")
    by_models = {name: value for name, value in VALIDATION.items() if name != "validation.harm_rate"}
    assert alarms.after_validation(run([{"harm_rate_model": 0.0}] * 6)[1], 6, by_models | {"validation.unsafe_rate": 0.9}) == []


def test_a_scorer_that_sees_less_harm_than_a_watching_guard_is_told_of_once_enough_answers_are_read():
    severe, safe, unread = {"guard.severity": "severe"}, {"guard.severity": "safe"}, {"guard.unread": "too_long"}
    cost_B = np.where(np.arange(40) < 4, 0.75, -0.5)

    def after(unsafe: int, read: int) -> list[str]:
        memory = run([{}] * 6)[1]
        verdicts = [severe] * unsafe + [safe] * (read - unsafe) + [unread] * (40 - read)
        return alarms.after_samples(memory, 9, cost_B, verdicts)

    assert after(9, 40) == [] and after(20, 31) == []
    (text,) = after(11, 40)
    assert text.startswith("iteration 9: the guard of config.log.guard calls more answers unsafe than the cost model")


def test_the_report_has_them_at_its_top(tmp_path):
    folder = tmp_path / "ppo_lag"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "lambda": 0.5, "kl": 0.1}) + "\n")
    (folder / "result.json").write_text(json.dumps({"alarm.entropy": 17.0, "kl": 0.1}))
    body = warning_section(workdir.read(folder)).body
    (folder / "result.json").write_text(json.dumps({"alarm.entropy": 17.0, "alarm.short.multiplier": 40.0, "kl": 0.1}))
    assert "iteration 40: short: lambda has been at its max" in warning_section(workdir.read(folder)).body
    assert "iteration 17: the policy&#x27;s entropy is a twentieth" in body or "iteration 17: the policy's entropy" in body
    (folder / "result.json").write_text(json.dumps({"kl": 0.1}))
    assert warning_section(workdir.read(folder)).body == ""
