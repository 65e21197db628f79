"""The multipliers' warm start: the closed form on sampled answers, what a run does with it, and what is refused."""

import functools
import json
import re

import numpy as np
import pytest
import tiny_functions
from tiny_functions import ROWS
from tiny_stages import numbers, settings

from srlhfv_jax.config import PPOLagConfig, stored, to_dict
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import dual, lagrangian, shaping
from srlhfv_jax.parallel import hosts
from srlhfv_jax.ppo_lag import check, run as ppo_lag, warm_start
from srlhfv_jax.ppo_lag.warm_start import Samples
from srlhfv_jax.training import loop

BETA = 0.35


def drawn(*keys: str, **shares: float) -> Samples:
    """Rewards that harm pays for, a KL, and costs of which most are 0; of a share of the prompts."""
    rng = np.random.default_rng(3)
    reward_NG = rng.normal(size=(24, 8))
    costs = {key: np.maximum(0.0, rng.normal(size=(24, 8)) + 0.4 * reward_NG - 0.3) for key in keys}
    for key, share in shares.items():
        costs[key][round(24 * share) :] = 0.0
    return Samples(reward_NG, 0.2 * rng.normal(size=(24, 8)), costs, dict.fromkeys(keys, 1.0) | shares)


def ceilings(samples: Samples, value: float = 6.5) -> dict[str, float]:
    return dict.fromkeys(samples.costs, value)


def tilted(samples: Samples, lams: dict[str, float]):
    """pi_lambda on the samples, written out: rows of weights."""
    score_NG = samples.reward_NG - sum(lams[key] * cost_NG for key, cost_NG in samples.costs.items())
    weight_NG = np.exp(score_NG / (BETA * (1 + sum(lams.values()))) - samples.kl_NG)
    return weight_NG / weight_NG.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("shares", ({}, {"polite": 0.75}))
def test_each_multiplier_inside_its_range_keeps_its_budget_exactly_on_the_very_samples(shares):
    """Of two constraints, the second about some of the prompts, whose mean is theirs."""
    samples, budgets = drawn("cost", "polite", **shares), {"cost": 0.15, "polite": 0.2}
    lams = warm_start.solve(samples, budgets, BETA, ceilings=ceilings(samples))
    for key, lam in lams.items():
        assert 0.05 < lam < 6.4
        held_N = np.sum(tilted(samples, lams) * samples.costs[key], axis=1)
        held_N = held_N[: round(24 * shares.get(key, 1.0))]
        assert held_N.mean() == pytest.approx(budgets[key], abs=1e-5)
        assert warm_start.expected_cost(samples, lams, key, BETA) == pytest.approx(held_N.mean(), abs=1e-9)


def test_one_constraint_has_the_multiplier_of_the_dual_with_a_leash_that_grows_with_it():
    samples, budget = drawn("cost"), 0.1
    (lam,) = warm_start.solve(samples, {"cost": budget}, BETA, ceilings=ceilings(samples)).values()
    scale = BETA * (1 + lam)
    scored = samples.reward_NG - scale * samples.kl_NG, samples.costs["cost"]
    assert dual.solve(*scored, budget, scale, ceiling=6.5) == pytest.approx(lam, abs=1e-4)
    assert dual.gradient(lam, *scored, budget, scale) == pytest.approx(0.0, abs=1e-5)


def test_the_policy_of_the_closed_form_leaves_the_mixed_advantages_nothing_to_learn():
    """Under pi_lambda they are the same for every answer to a prompt, as losses/shaping.py and losses/lagrangian.py mix them."""
    samples, lams = drawn("cost", "polite"), {"cost": 0.8, "polite": 1.7}
    log_ref_NG = -0.9 - samples.kl_NG  # of answers that the sampling policy gives equally often
    kl_NG = np.log(tilted(samples, lams)) - log_ref_NG
    mask_B1 = np.ones((kl_NG.size, 1), bool)

    def token(shaped, score_NG):
        given = (np.float32(x_NG).reshape(-1, 1) for x_NG in (kl_NG, score_NG))
        kl_B1, score_B1 = given
        return shaped(kl_B1, score_B1[:, 0], mask_B1, kl_coef=BETA, clip_score=50.0)

    costs = {key: token(shaping.token_costs, cost_NG) for key, cost_NG in samples.costs.items()}
    mixed = lagrangian.combine(token(shaping.token_rewards, samples.reward_NG), costs, lams)
    assert np.ptp(np.asarray(mixed).reshape(kl_NG.shape), axis=1) == pytest.approx(0.0, abs=1e-5)


def test_an_ample_budget_needs_no_multiplier_and_an_unreachable_one_all_of_it(capsys):
    samples = drawn("cost", "polite")
    lams = warm_start.solve(samples, {"cost": 2.5, "polite": 1e-6}, BETA, ceilings={"cost": 6.5, "polite": 3.25})
    assert lams == {"cost": 0.0, "polite": 3.25}
    one = Samples(*samples[:2], {"cost": samples.costs["cost"]}, {"cost": 1.0})
    for budget, controller, start in (
        (2.5, "pid", 0.0),
        (2.5, "log", warm_start.FLOOR),
        (1e-6, "log", 1.5),
        (1e-6, "projected", 1.5),
    ):
        changes = {"constraint.budget": budget, "constraint.controller": controller, "constraint.max": 1.5}
        known = settings(PPOLagConfig, "ppo_lag", **changes | {"ppo.kl_coef": BETA, "lambda_warm_start": 8})
        assert warm_start.started(known, one) == {"cost": start}
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and ("no lambda up to its max keeps it" in said) == (start == 1.5), said


HARM = dict(name="harm", cost="OWN:loud", kind="rectified", budget=2.25, controller="log", learning_rate=0.25)
SHORT = dict(name="short", cost="answer:length", kind="mean", where="level=l1", budget=3.5, controller="pid", kp=0.25)
OWN = """
def loud(samples):
    return [sum(int(word[1:]) % 5 for word in sample.answer.split() if word[1:].isdigit()) * 0.375 - 1.25 for sample in samples]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_functions.save(tmp_path_factory.mktemp("warm_start"), OWN, ROWS)


def asked(folder, *items: dict, **changes) -> PPOLagConfig:
    """Three iterations whose rewards and costs are functions; the answers of the first batch are all prompts but two."""
    own = f"{folder / 'own.py'}:loud"
    items = tuple(item | {"cost": item["cost"].replace("OWN:loud", own)} for item in items)
    known = tiny_functions.data(folder) | {"iterations": 3, "checkpoint.every_steps": 1, "reward_fn": "answer:length"}
    known |= {"constraint.window": 8, "ppo.kl_coef": 0.75, "log.tensorboard": False, "policy": str(folder / "llama")}
    return settings(PPOLagConfig, "ppo_lag", constraints=items, **known | changes)


@pytest.fixture(scope="module")
def warm(folder, tmp_path_factory):
    """A whole run with two constraints, the samples of its start, and what it said of them."""
    workdir, seen, said = tmp_path_factory.mktemp("warm"), [], []
    with pytest.MonkeyPatch.context() as patched:
        started = warm_start.started
        patched.setattr(warm_start, "started", lambda known, samples: started(known, seen.append(samples) or samples))
        patched.setattr(hosts, "say", said.append)
        result = ppo_lag.run(asked(folder, HARM, SHORT, lambda_warm_start=6), workdir)
    (samples,) = seen
    return workdir, samples, [line for line in said if " starts at " in line], result


def test_a_run_starts_at_the_multipliers_of_its_own_samples_and_says_so(warm):
    workdir, samples, said, result = warm
    assert samples.reward_NG.shape == (4, 6) and samples.kl_NG == pytest.approx(0.0, abs=1e-4)
    assert len(np.unique(samples.reward_NG)) > 2 and samples.shares["cost"] == 1 and 0 < samples.shares["short"] < 1
    lams = warm_start.solve(samples, {"cost": 2.25, "short": 3.5}, 0.75, ceilings={"cost": 5.0, "short": 5.0})
    assert result["lambda.start"] == lams["cost"] and result["short.lambda.start"] == lams["short"]
    assert all(0.1 < lam < 4 for lam in lams.values()), lams
    assert samples.reward_NG[:, 0].mean() != pytest.approx(numbers(workdir)[0]["reward"])  # those of the rollout are others
    assert len(said) == 2 and f"short.lambda starts at {lams['short']:.4g}, by 6 answers to each prompt" in said[1]
    assert json.loads((workdir / "result.json").read_text())["lambda.start"] == result["lambda.start"]


def test_a_warm_start_is_a_run_that_starts_at_its_multipliers_and_in_nothing_else_another_one(folder, warm, tmp_path):
    """No answer, no order of rows and no key differs: line by line the log of a run without it, from the same multipliers."""
    *_, result = warm
    cold = [HARM | {"init": result["lambda.start"]}, SHORT | {"init": result["short.lambda.start"]}]
    done = ppo_lag.run(asked(folder, *cold), tmp_path)
    assert numbers(tmp_path) == numbers(warm[0]) and "lambda.start" not in done


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_start_its_multipliers_again(folder, warm, tmp_path, monkeypatch):
    known = asked(folder, HARM, SHORT, lambda_warm_start=6)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "run", functools.partial(loop.run, stop=lambda done: done == 1))
        with pytest.raises(loop.Preempted):
            ppo_lag.run(known, tmp_path)
    monkeypatch.setattr(warm_start, "sample", lambda *_: pytest.fail("sampled again"))
    result = ppo_lag.run(known, tmp_path)
    assert numbers(tmp_path) == numbers(warm[0]) and result["short.lambda.start"] == warm[3]["short.lambda.start"]


@pytest.mark.slow
def test_groups_start_by_as_many_answers(folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(warm_start, "started", lambda known, samples: seen.append(samples) or {"cost": 0.625})
    groups = {"ppo.advantage": "rloo", "ppo.group_size": 2, "data.batch_size": 8, "lambda_warm_start": 4, "iterations": 1}
    result = ppo_lag.run(asked(folder, HARM | {"controller": "pid"}, **groups), tmp_path)
    assert seen[0].reward_NG.shape == seen[0].costs["cost"].shape == (4, 4) and result["lambda.start"] == 0.625


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"constraint.controller": "none"}, "config.constraint.controller='none': leave it at 0"),
        ({"constraint.controller": "p3o"}, "config.constraint.controller='p3o'"),
        ({"constraint.controller": "fixed"}, "config.constraint.controller='fixed'"),
        ({"constraint.controller": "crpo"}, "config.constraint.controller='crpo'"),
        ({"ppo.kl_coef": 0.0}, "needs config.ppo.kl_coef above 0"),
        ({"ppo.scale_scores": "std"}, "needs config.ppo.scale_scores='none', got 'std'"),
        ({"ppo.whiten": "scale"}, "needs config.ppo.whiten='none', got 'scale'"),
        ({"ppo.whiten": "reward_mean"}, "needs config.ppo.whiten='none', got 'reward_mean'"),
        ({"ppo.advantage": "group", "ppo.group_size": 2}, "needs config.ppo.group_scale='none', got 'std'"),
        ({"ppo.advantage": "rloo", "ppo.group_size": 4}, "6 must be a multiple of config.ppo.group_size 4"),
    ],
)
def test_where_the_closed_form_is_another_problem_it_is_refused_in_one_line(changes, text):
    changes = {"lambda_warm_start": 6, "scorer": "W/scores", "policy": "W/sft", "constraint.window": 8} | changes
    with pytest.raises(UserError, match=re.escape(text)) as error:
        check.check(settings(PPOLagConfig, "ppo_lag", **changes))
    assert str(error.value).startswith("config.lambda_warm_start") and "\n" not in str(error.value)
    check.check(settings(PPOLagConfig, "ppo_lag", **changes | {"lambda_warm_start": 0}))


def test_settings_of_before_have_none():
    written = to_dict(settings(PPOLagConfig, "ppo_lag"))
    assert written.pop("lambda_warm_start") == 0
    assert stored.read(written, "config.json").lambda_warm_start == 0
