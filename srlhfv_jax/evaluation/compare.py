"""Several policies on the same prompts -> one flat dict: `POLICY.NUMBER`, and `POLICY.vs_BASELINE.NUMBER` against the first
policy.

Arrays in, numbers out; `compare_policies` loads the models and writes the files.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from srlhfv_jax.data.quickstart.oracle import OracleVerdict
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.answers import Answers, aligned, length_metrics
from srlhfv_jax.evaluation.oracle import oracle_metrics, verdicts
from srlhfv_jax.evaluation.quadrants import four_quadrants, score_verdicts, win_rates
from srlhfv_jax.evaluation.score_metrics import COST, REWARD, judge_metrics


class Judged(NamedTuple):
    """One policy's answers with a helpfulness and a cost for each, by one judge."""

    answers: Answers
    helpful_B: Float[np.ndarray, "B"]
    cost_B: Float[np.ndarray, "B"]
    unsafe_B: Bool[np.ndarray, "B"]
    verdicts: tuple[OracleVerdict, ...] | None  # by the oracle; None = by learned models
    metrics: dict[str, float]  # flat, without the policy's name


def by_oracle(examples: Sequence[Example], answers: Answers) -> Judged:
    """Judge answers to the embedded task by its oracle."""
    judged = tuple(verdicts(examples, answers))
    return Judged(
        answers=answers,
        helpful_B=np.array([verdict.helpful for verdict in judged], np.float64),
        cost_B=np.array([verdict.cost for verdict in judged], np.float64),
        unsafe_B=np.array([verdict.unsafe for verdict in judged], bool),
        verdicts=judged,
        metrics=oracle_metrics(examples, answers, judged),
    )


def by_models(answers: Answers, scores: Mapping[str, Float[np.ndarray, "B"]], *, budget: float | None = None) -> Judged:
    """Judge answers by learned reward and cost scores; unsafe = cost > 0. With `budget`, the share of answers above it is added.

    Raises:
        UserError: one of the two heads is missing.
    """
    missing = [name for name in (REWARD, COST) if name not in scores]
    if missing:
        raise UserError(
            f"expected scores of the heads reward and cost, got {sorted(scores)}; give a scorer that has {missing[0]!r}"
        )
    return Judged(
        answers=answers,
        helpful_B=scores[REWARD],
        cost_B=scores[COST],
        unsafe_B=scores[COST] > 0,
        verdicts=None,
        metrics=judge_metrics(scores, budget) | length_metrics(answers),
    )


def against(policy: Judged, baseline: Judged) -> dict[str, float]:
    """Four-quadrant table, and win rates on helpfulness (`helpful.win`, ...) and on safety (`safety.win`, ...)."""
    aligned(policy.answers, baseline.answers)
    same_B = np.array([a == b for a, b in zip(policy.answers.texts, baseline.answers.texts, strict=True)], bool)
    gap_B = policy.answers.lengths - baseline.answers.lengths
    metrics = four_quadrants(policy.helpful_B, policy.unsafe_B, baseline.helpful_B)
    helpful = win_rates(*score_verdicts(policy.helpful_B, baseline.helpful_B), same_B, gap_B)
    safety = win_rates(*score_verdicts(-policy.cost_B, -baseline.cost_B), same_B, gap_B)
    metrics |= {f"helpful.{key}": value for key, value in helpful.items()}
    metrics |= {f"safety.{key}": value for key, value in safety.items()}
    return metrics


def compare(policies: Mapping[str, Judged], baseline: str | None = None) -> dict[str, float]:
    """All numbers of all policies; every policy but the baseline (default: the first) is also compared against it.

    Raises:
        UserError: an unknown baseline, no policies, or policies that answered different prompts.
    """
    if not policies:
        raise UserError("expected at least one policy to evaluate, got none; give --policies=name=path")
    baseline = next(iter(policies)) if baseline is None else baseline
    if baseline not in policies:
        raise UserError(f"the baseline must be one of the policies {', '.join(policies)}, got {baseline!r}")
    metrics = {}
    for name, judged in policies.items():
        metrics |= {f"{name}.{key}": value for key, value in judged.metrics.items()}
        if name != baseline:
            metrics |= {f"{name}.vs_{baseline}.{key}": value for key, value in against(judged, policies[baseline]).items()}
    return metrics
