"""The start of multipliers, from answers of the policy as it begins, before anything is updated (config.lambda_warm_start).

    pi_lambda(y|x) ∝ pi_ref(y|x) exp((R - sum_k lambda_k f(C_k)) / (beta (1 + sum_k lambda_k)))

is what mixed advantages lead to while lambda stands still: they are divided by 1 + sum lambda, and their KL is not (losses/shaping.py).
On samples that is the closed form of losses/dual.py (arXiv 2405.19544) with beta (1 + sum lambda) for its beta; the sum is found by
bisection. Answers of a policy that is not the reference are weighed by pi_ref / pi.

Left out: `confidence` (the mean itself is held under the budget), discounts, PTX and the entropy bonus.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from srlhfv_jax.batches import PromptBatch
from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.config.constraints import metric
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import dual, lagrangian
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.ppo_lag import experience
from srlhfv_jax.ppo_lag.iteration import Iteration
from srlhfv_jax.training import state as states

FLOOR = 0.01  # of "log", whose multiplier cannot leave 0
START = "lambda_start"  # among the notes of a run


class Samples(NamedTuple):
    """G answers to each of N prompts, scored as their token rewards are."""

    reward_NG: dual.Scores
    kl_NG: dual.Scores  # log pi - log pi_ref of whole answers
    costs: Mapping[str, dual.Scores]  # constraint -> f(C); 0 where it is not about the answer. Without those that are about none
    shares: Mapping[str, float]  # of the answers that it is about


def before(iteration: Iteration, notes: dict[str, Any]) -> Callable:
    """The iteration as a loop step whose first one, at step 0, has the multipliers start where the answers to its prompts say."""
    waiting = True

    def step(state: states.TrainState, batch: tuple[PromptBatch, Any]) -> tuple[states.TrainState, dict]:
        nonlocal waiting
        if waiting and int(state.step) == 0:
            samples = sample(iteration, state, hosts.global_batch(batch, iteration.mesh)[0])
            lams = started(iteration.settings, samples)
            notes[START] = {metric(key, "lambda.start"): lam for key, lam in lams.items()}
            starts = {key: dataclasses.replace(iteration.settings.costs[key].settings, init=lam) for key, lam in lams.items()}
            begun = rules.replicate({key: lagrangian.init(one) for key, one in starts.items()}, iteration.mesh)
            state = state._replace(extra=state.extra.with_controllers(state.extra.controllers | begun))
        waiting = False
        return iteration(state, batch)

    return step


def sample(iteration: Iteration, state: states.TrainState, prompts: PromptBatch) -> Samples:
    """Answers to a batch of prompts, `config.lambda_warm_start` to each, and their scores, on the host."""
    settings, size = iteration.settings, iteration.settings.ppo.group_size
    rounds = []
    for number in range(settings.lambda_warm_start // size):
        key = states.key(settings.seed, number, "warm_start")
        scored = iteration.answered_again(state.params, prompts, key, state.extra)
        kl_B = iteration.row_numbers(scored)["kl"]
        rounds.append(hosts.to_host((scored.reward_B, kl_B, scored.costs_B, scored.applies_B)))
        del scored
    limit = settings.ppo.clip_score

    def together(answers: list[np.ndarray]) -> dual.Scores:
        return np.concatenate([answer_B.reshape(-1, size) for answer_B in answers], axis=1).astype(np.float64)

    rewards, kls, costs, about = zip(*rounds)
    values, shares = {}, {}
    for name in settings.costs:
        pairs = [(cost_B[name], about_B.get(name)) for cost_B, about_B in zip(costs, about)]
        value_NG = together([np.asarray(experience.constraint_statistic(iteration.static, name, *pair)) for pair in pairs])
        share = float(np.mean([np.ones_like(cost_B) if about_B is None else about_B for cost_B, about_B in pairs]))
        if share > 0:
            values[name], shares[name] = np.clip(value_NG, -limit, limit), share
    reward_NG, kl_NG = together(rewards), together(kls)
    if not all(np.isfinite(one_NG).all() for one_NG in (reward_NG, kl_NG, *values.values())):
        raise UserError(
            "config.lambda_warm_start: a reward, cost or KL of the first answers is not finite: look at scorer and policy"
        )
    return Samples(np.clip(reward_NG, -limit, limit), kl_NG, values, shares)


def started(settings: PPOLagConfig, samples: Samples) -> dict[str, float]:
    """The multiplier that each constraint starts from, and a line that says so. One that is about none of the answers is left out."""
    limits, beta = {key: settings.costs[key].settings for key in samples.costs}, settings.ppo.kl_coef
    budgets, ceilings = {key: one.budget for key, one in limits.items()}, {key: one.max for key, one in limits.items()}
    lams = solve(samples, budgets, beta, ceilings=ceilings)
    for key, one in limits.items():
        if one.controller == "log":
            lams[key] = min(max(lams[key], FLOOR), one.max)
    nothing = dict.fromkeys(lams, 0.0)
    for key, lam in lams.items():
        free, held = (expected_cost(samples, some, key, beta) for some in (nothing, lams))
        missed = "" if lam < ceilings[key] or held <= budgets[key] else "; no lambda up to its max keeps it on these answers"
        hosts.say(
            f"ppo_lag: {metric(key, 'lambda')} starts at {lam:.4g}, by {settings.lambda_warm_start} answers to each prompt: the expected "
            f"cost is {free:.4g} at 0 and {held:.4g} there, the budget {budgets[key]:g}{missed}"
        )
    return lams


def solve(samples: Samples, budgets: Mapping[str, float], beta: float, *, ceilings: Mapping[str, float]) -> dict[str, float]:
    """lambda of each constraint, at which pi_lambda keeps every budget, and which is 0 where that needs none. One that its ceiling
    cannot keep stays at the ceiling.

    Args:
        budgets: of the mean over the answers that a constraint is about.
    """
    scaled = {key: samples.shares[key] * budgets[key] for key in samples.costs}

    def closed(total: float) -> dict[str, float]:
        scale = beta * (1 + total)
        return dual.solve_all(samples.reward_NG - scale * samples.kl_NG, samples.costs, scaled, scale, ceilings=ceilings)

    low, high = 0.0, float(sum(ceilings[key] for key in samples.costs))
    lams = closed(low)
    if not any(lams.values()):
        return lams
    while high - low > dual.TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if sum(closed(middle).values()) > middle else (low, middle)
    return closed(high)


def expected_cost(samples: Samples, lams: Mapping[str, float], key: str, beta: float) -> float:
    """E[f(C)] of a constraint under pi_lambda, over the answers that it is about."""
    scale = beta * (1 + sum(lams.values()))
    others_NG = sum((lams[other] * cost_NG for other, cost_NG in samples.costs.items() if other != key), np.float64(0))
    rest_NG = samples.reward_NG - scale * samples.kl_NG - others_NG
    return dual.expected_cost(lams[key], rest_NG, samples.costs[key], scale) / samples.shares[key]
