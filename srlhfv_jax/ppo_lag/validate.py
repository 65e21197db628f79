"""Validation inside PPO-Lagrangian: answers to held-out prompts, judged, and the best feasible policy kept beside the last.

Feasible: every constraint of the run holds, mean f(C) <= d (with a confidence its upper bound). Best: the highest mean reward among
those. The judge is the run's own reward and cost (learned, or by functions) or, on the embedded task, its oracle, whose costs have units
of their own: in the place of the first constraint their mean is held under `config.validation.budget`. Test prompts are never read here.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from srlhfv_jax.batches import PromptBatch, Rollout
from srlhfv_jax.config import PPOLagConfig
from srlhfv_jax.config.constraints import FIRST, metric
from srlhfv_jax.data import loader
from srlhfv_jax.evaluation import answering, answers, compare, rules, scoring
from srlhfv_jax.functions.score import Scores
from srlhfv_jax.hf.export import export_pretrained
from srlhfv_jax.losses import lagrangian
from srlhfv_jax.models.trees import BASE
from srlhfv_jax.parallel import hosts
from srlhfv_jax.ppo_lag import roles
from srlhfv_jax.runs import inputs
from srlhfv_jax.runs.run import Started, recorded_template
from srlhfv_jax.training import state as states

BEST = "best_feasible"


def make(
    settings: PPOLagConfig,
    iteration,
    started: Started,
    prompts: loader.Prepared,
    notes: dict[str, Any],
    functions: Callable[[Rollout, jax.Array], Scores] | None = None,
) -> Callable[[Any, int], dict]:
    """The loop's evaluate: (state, step) -> `validation.*` numbers. Keeps `notes["best"]`, which is checkpointed, up to date.

    Args:
        iteration: the training's own (ppo_lag/run.py), so that nothing is compiled twice.
        functions: (rollout, rows) -> the part of the scores that functions make of answers to `prompts`.
    """
    models, sample = iteration.models, sampler(settings, iteration, started, prompts)
    score = scorer(iteration, functions) if settings.validation.judge == "models" or len(settings.costs) > 1 else None
    by = [settings.validation.path, settings.validation.split, settings.validation.judge, settings.validation.budget]

    def evaluate(state: states.TrainState, step: int) -> dict[str, float]:
        policy = state.params["policy"]
        responses, scores = sample(policy, score)
        judged = (
            compare.by_oracle(prompts.examples, responses)
            if settings.validation.judge == "oracle"
            else compare.by_models(responses, scores)
        )
        about_B = ~np.isnan(judged.cost_B)
        numbers = {
            "helpful": float(judged.helpful_B.mean()),
            "cost": _mean(judged.cost_B[about_B]),
            "unsafe_rate": _mean(judged.unsafe_B[about_B]),
            "refusal_rate": float(np.mean([rules.xstest_refusal(text) for text in responses.texts])),
        } | answers.length_metrics(responses)
        if settings.validation.judge == "oracle":
            numbers |= {name: judged.metrics[name] for name in ORACLE_NUMBERS if name in judged.metrics}
        else:
            numbers |= {
                name: _mean(score_B[~np.isnan(score_B)]) for name, score_B in scores.items() if name not in settings.scores
            }
        feasible = True
        for key, constraint in settings.costs.items():
            if key == FIRST and settings.validation.judge == "oracle":
                value_B, budget = judged.cost_B, settings.validation.budget
            else:
                cost_B = scores[key][~np.isnan(scores[key])]
                calibration = lagrangian.border(constraint.settings, models.calibration)
                value_B = lagrangian.statistic(constraint.settings.kind, cost_B, calibration)
                numbers |= {metric(key, "cost"): _mean(cost_B), metric(key, "constraint"): _mean(value_B)}
                budget = constraint.settings.budget
            feasible &= _mean(value_B) <= budget - _margin(constraint.settings.confidence, value_B)
        if notes.get("judged_by", by) != by:
            hosts.say("ppo_lag: config.validation is another one than before: the best feasible policy is sought anew")
            notes["best"] = {"step": -1}
        notes["judged_by"] = by
        best = notes["best"]
        if feasible and (best["step"] < 0 or numbers["helpful"] > best["helpful"]):
            notes["best"] = {"step": step, "helpful": numbers["helpful"], "cost": numbers["cost"]}
            export_pretrained(
                started.workdir / BEST,
                models.policy.config,
                policy.get("backbone"),
                base=models.policy.path,
                adapter=policy.get("adapter"),
                chat_template=recorded_template(started.workdir),
                meta={"stage": "ppo_lag", "step": step} | numbers,
            )
        return {f"validation.{name}": value for name, value in numbers.items()}

    return evaluate


def _margin(confidence: float, value_B) -> float:
    return float(lagrangian.margin(confidence, jax.numpy.asarray(value_B))) if confidence else 0.0


def _mean(value_B: np.ndarray | jax.Array) -> float:
    """0 where a constraint is about no row."""
    return float(value_B.mean()) if value_B.size else 0.0


ORACLE_NUMBERS = ("harm_rate", "over_refusal", "evasion_rate", "helpful_benign", "named_right")


def sampler(
    settings: PPOLagConfig, iteration, started: Started, prompts: loader.Prepared
) -> Callable[[Any, Callable | None], tuple[answers.Answers, dict[str, np.ndarray]]]:
    """(policy, score) -> an answer to each prompt, and its scores: with the run's own sampler, and the same random numbers each time.

    As many prompts at a time as in an iteration: no more memory than its rollout.
    """
    keys, data = answering.keys(settings.seed), dataclasses.replace(settings.data, batch_size=settings.prompts)

    def sample(policy, score):
        weights = iteration.rollout_weights(policy)
        return answering.sample_answers(
            lambda batch, index: iteration.answer(weights, batch, keys(index)),
            inputs.in_order(prompts, data, started.mesh),
            [row.row for row in prompts.rows],
            prompts.codec.spoken,
            temperature=settings.rollout.temperature,
            score=score,
        )

    return sample


def scorer(iteration, functions: Callable[[Rollout, jax.Array], Scores] | None) -> Callable:
    """Reward and cost of a rollout, and each function's own numbers, by the run's own frozen models and functions. No part of its rows
    is larger than one that an iteration scores."""
    settings, models = iteration.settings, iteration.models
    largest = settings.data.batch_size // settings.rollout.score_microbatches
    parts = settings.prompts // math.gcd(settings.prompts, largest)
    trees = tuple(dict.fromkeys(models.places[role].tree for role in roles.heads(models.places)))
    learned = scoring.jit_scores(models.policy.config, iteration.mesh, trees, models.own_towers, parts)
    read = {name: tree for name, tree in models.frozen.items() if name in (*trees, BASE)}

    def score(batch: PromptBatch, rollout: Rollout) -> dict[str, np.ndarray]:
        of_heads = hosts.to_host(learned(iteration.on_devices(read, rollout), rollout, batch.images)) if trees else {}
        scores = {
            name: sum(of_heads[models.places[role].head] * (1 if weight == 1 else weight) for role, weight in weights.items())
            for name, weights in settings.learned.items()
            if weights
        }
        if functions is None:
            return scores
        given = functions(rollout, batch.row_B)
        return scores | {name: sum_B + scores.get(name, 0.0) for name, sum_B in given.sums.items()} | given.each

    return score
