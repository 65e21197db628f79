"""PPO-Lagrangian with functions as reward and cost: what it learns from, where its critics start, what it keeps, how it stops."""

import functools
import json
from collections import Counter

import jax
import numpy as np
import pytest
import tiny_functions
import tiny_ppo
from tiny_stages import numbers, settings

from srlhfv_jax.cli.main import main
from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.ppo_lag import experience, run as ppo_lag
from srlhfv_jax.ppo_lag.load import load_models

ROWS = [dict(row) for row in tiny_functions.ROWS]
ROWS[2]["history"] = [{"role": "user", "content": "w6"}, {"role": "assistant", "content": "w7"}]
OWN = """
def length(samples):
    return [-abs(len(one.answer.split()) - 3.25) for one in samples]

def words(samples):
    return [sum(word in one.answer.split() for word in ("w6", "w8", "w12", "w14")) - 0.5 for one in samples]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random Llama, prompts with a column of their own, and own.py."""
    return tiny_functions.save(tmp_path_factory.mktemp("functions"), OWN, ROWS)


def asked(folder, **changes) -> PPOLagConfig:
    """Settings of a run with the functions of own.py."""
    data = tiny_functions.data(folder)
    own = {"reward_fn": f"{folder / 'own.py'}:length*0.5", "cost_fn": f"{folder / 'own.py'}:words"}
    small = {"iterations": 3, "functions.backoff_s": 0.0, "validation.path": data["data.path"], "validation.every_steps": 1}
    return settings(PPOLagConfig, "ppo_lag", policy=str(folder / "llama"), **data | own | small | changes)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """The workdir of a run with the functions of own.py."""
    workdir = tmp_path_factory.mktemp("whole")
    ppo_lag.run(asked(folder), workdir)
    return workdir


def kept(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "reward_cache.jsonl").read_text().splitlines()]


def test_each_function_is_logged_by_its_name_and_their_weighted_sum_is_what_is_learned_from(whole):
    log = numbers(whole)
    steps = [line for line in log if "reward" in line]
    assert len(steps) == 3
    for line in steps:
        penalty = 1.0 - line["ended"]
        assert line["reward"] == pytest.approx(0.5 * line["reward.length"] - penalty, abs=1e-6)
        assert line["cost"] == pytest.approx(line["cost.words"], abs=1e-6)
    assert steps[0]["reward"] != 0 and steps[1]["policy_loss"] != 0
    for line in (line for line in log if "validation.helpful" in line):
        assert line["validation.helpful"] == pytest.approx(0.5 * line["validation.reward.length"], abs=1e-6)
        assert line["validation.cost"] == pytest.approx(line["validation.cost.words"], abs=1e-6)


def test_no_answer_is_scored_twice(whole):
    lines = kept(whole)
    assert len({line["key"] for line in lines}) == len(lines)
    assert Counter(line["name"] for line in lines) == {"reward.length": len(lines) / 2, "cost.words": len(lines) / 2}


def test_a_run_whose_function_failed_stops_with_its_state_and_goes_on_as_if_it_had_not(folder, whole, tmp_path):
    """The functions are given in Python this time, and they are the same ones: nothing but where they come from differs."""
    scope: dict = {}
    exec(OWN, scope)  # noqa: S102
    seen, broken = [], True

    def length(samples):
        if broken and len(seen) >= 8:
            raise ConnectionError("the endpoint is gone")
        seen.extend(samples)
        return scope["length"](samples)

    given = {"reward": {"length": length}, "cost": {"words": scope["words"]}}
    named = dict(reward_fn="length*0.5", cost_fn="words")
    once = asked(folder, **named, **{"checkpoint.every_steps": 100, "validation.path": ""})
    with pytest.raises(
        UserError, match="step 3: config.reward_fn: length raised ConnectionError: the endpoint is gone for row"
    ) as said:
        ppo_lag.run(once, tmp_path, given)
    assert "step 2 is saved" in str(said.value) and len(seen) == 8
    broken = False
    ppo_lag.run(once, tmp_path, given)
    assert len(seen) <= 12
    expected = [line for line in numbers(whole) if "reward" in line]
    assert numbers(tmp_path) == expected


def test_a_sample_has_the_row_and_the_answer(folder, tmp_path):
    seen = []

    def look(samples):
        seen.extend(samples)
        return [0.5] * len(samples)

    both = asked(folder, reward_fn="look", cost_fn="look", iterations=0, **{"validation.every_steps": 1})
    ppo_lag.run(both, tmp_path, {"reward": {"look": look}, "cost": {"look": look}})
    assert not seen  # no iteration, and no validation before the first
    ppo_lag.run(
        asked(folder, reward_fn="look", cost_fn="look", iterations=1),
        tmp_path / "one",
        {"reward": {"look": look}, "cost": {"look": look}},
    )
    for one in seen:
        assert (one.question, dict(one.meta)) == (ROWS[one.row]["prompt"], {"level": ROWS[one.row]["level"]})
        assert [(turn.role, turn.text) for turn in one.history] == ([("user", "w6"), ("assistant", "w7")] if one.row == 2 else [])
        assert isinstance(one.answer, str) and len(one.images) == 0 and one.ended in (True, False)
    assert any(one.answer for one in seen)


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_without_a_scorer_critics_start_from_the_policy_with_heads_of_their_own(folder, one_device, sharing):
    jax.set_mesh(one_device)
    models = load_models(asked(folder, sharing=sharing), one_device)
    critics = {name: tree for name, tree in models.trained.items() if name != "policy"}
    assert set(critics) == ({"critic"} if sharing == "shared" else {"reward_critic", "cost_critic"})
    assert set(models.frozen) == {"reference"} and {"reward", "cost"}.isdisjoint(models.places)
    heads = {}
    for tree in critics.values():
        jax.tree.map(np.testing.assert_array_equal, tree["backbone"], models.trained["policy"]["backbone"])
        heads |= tree["heads"]
    assert np.abs(heads["reward"]["kernel"] - heads["cost"]["kernel"]).max() > 0.01


def test_functions_are_added_to_the_learned_head_with_their_weights():
    batch, rollout = tiny_ppo.rolled()
    given_B = np.linspace(-1.7, 0.9, 8, dtype=np.float32)

    def score(text: str, given: dict):
        known = tiny_ppo.static(reward_fn=text)
        run = functools.partial(experience.score, known, streams=False)
        scored = jax.jit(run)(tiny_ppo.models(), rollout, batch.images, given)
        return scored, experience.metrics(known, scored, rollout, given)

    alone, _ = score("", {})
    mixed, logged = score("model*0.25,f", {"reward": given_B})
    penalty_B = np.where(rollout.ended_B, 0.0, 0.3)
    np.testing.assert_allclose(mixed.reward_B, 0.25 * (alone.reward_B + penalty_B) + given_B - penalty_B, atol=1e-5)
    np.testing.assert_array_equal(mixed.costs_B["cost"], alone.costs_B["cost"])
    assert float(logged["reward.model"]) == pytest.approx(float(np.mean(alone.reward_B + penalty_B)), abs=1e-5)
    assert "cost.model" not in logged
    mean, cost_B = float(np.mean(alone.reward_B + penalty_B)), alone.costs_B["cost"]
    mixed, logged = score("model,model:cost*-0.5", {})
    np.testing.assert_allclose(mixed.reward_B, alone.reward_B - 0.5 * cost_B, atol=1e-5)
    assert float(logged["reward.cost"]) == pytest.approx(float(np.mean(cost_B)), abs=1e-6)
    assert float(logged["reward.model"]) == pytest.approx(mean, abs=1e-5)
    without, logged = score("model,model:cost*0,f*0", {"reward": 0.0 * given_B})
    jax.tree.map(np.testing.assert_array_equal, without._replace(terms_B={}), alone)
    assert set(without.terms_B) == {"reward.model", "reward.cost"} and "reward.cost" in logged


@pytest.mark.slow
def test_verifiers_of_weight_0_are_logged_and_change_nothing(folder, whole, tmp_path):
    verifiers = f"{folder / 'own.py'}:length*0.5,answer:format*0,answer:declined*0"
    ppo_lag.run(asked(folder, reward_fn=verifiers), tmp_path)
    added = {"reward.format", "reward.declined"}
    added |= {f"validation.{name}" for name in added}
    assert [{key: line[key] for key in line if key not in added} for line in numbers(tmp_path)] == numbers(whole)
    assert added <= {key for line in numbers(tmp_path) for key in line}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.reward_fn={own}:length"], "nothing says what the cost is: give config.scorer"),
        (["--config.reward_fn={own}:length", "--config.cost_fn={own}:word"], "own.py has no word; did you mean 'words'?"),
        (["--config.reward_fn={own}", "--config.cost_fn={own}:words"], "expected FILE.py:NAME"),
        (["--config.reward_fn={weights}:f", "--config.cost_fn={own}:words"], "model.safetensors cannot be run as Python"),
        (["--config.reward_fn=no.py:f", "--config.cost_fn={own}:words"], "there is no file 'no.py'"),
        (["--config.reward_fn=length", "--config.cost_fn={own}:words"], "names length without a file"),
        (
            ["--config.reward_fn={own}:length", "--config.cost_fn={own}:words", "--config.scorer=W"],
            "config.scorer would be ignored: neither config.reward_fn nor config.cost_fn has the term 'model'",
        ),
        (["--config.scorer=W", "--config.functions.rows=3"], "config.functions.rows would be ignored"),
        (["--config.scorer=W", "--config.reward_fn=model", "--config.functions.attempts=0"], "config.functions.attempts must be"),
    ],
)
def test_mistakes_about_functions_are_one_line_before_any_weights_are_loaded(folder, capsys, tmp_path, flags, message):
    places = {"own": folder / "own.py", "weights": folder / "llama" / "model.safetensors"}
    given = [
        f"--workdir={tmp_path / 'w'}",
        f"--config.policy={folder / 'llama'}",
        f"--config.data.path={folder / 'prompts.jsonl'}",
    ]
    code = main(["ppo_lag", "--config=ppo_lag.py:tiny", *given, *(flag.format(**places) for flag in flags)])
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1, said
