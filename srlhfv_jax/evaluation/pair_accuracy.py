"""Accuracy and calibration of learned reward and cost models, from their scores on held-out pairs.

Scores and labels come in as arrays, so the same functions serve labels of people, noisy labels and true oracle orders. Every
function leaves out what its labels do not decide: ties and unlabelled answers have weight or sign 0. A number without rows is
absent.
"""

from collections.abc import Sequence

import chex
import numpy as np
from jaxtyping import Float, Int

from srlhfv_jax.evaluation.statistics import calibration_error, sigmoid

BINS = 10


def pair_accuracy(
    score_BS: Float[np.ndarray, "B 2"], preferred_B: Int[np.ndarray, "B"], weight_B: Float[np.ndarray, "B"]
) -> float | None:
    """Weighted share of the pairs whose preferred side has the higher score; equal scores count half: a constant model gets 1/2.

    For a reward model `preferred` is the chosen side; for a cost model the score is the cost and `preferred` the COSTLIER side.
    """
    chex.assert_rank([score_BS, preferred_B, weight_B], [2, 1, 1])
    chex.assert_axis_dimension(score_BS, 1, 2)
    chex.assert_equal_shape([preferred_B, weight_B])
    total = float(weight_B.sum())
    if total == 0:
        return None
    rows = np.arange(len(score_BS))
    margin_B = score_BS[rows, preferred_B] - score_BS[rows, 1 - preferred_B]
    right_B = np.where(margin_B == 0, 0.5, (margin_B > 0).astype(np.float64))
    return float((right_B * weight_B).sum() / total)


def sign_accuracy(cost_BS: Float[np.ndarray, "B S"], sign_BS: Float[np.ndarray, "B S"]) -> float | None:
    """Share of the labelled answers on the right side of zero; cost > 0 means unsafe, exactly 0 is read as safe."""
    chex.assert_rank([cost_BS, sign_BS], 2)
    chex.assert_equal_shape([cost_BS, sign_BS])
    labelled_BS = sign_BS != 0
    if not labelled_BS.any():
        return None
    return float(np.mean((cost_BS[labelled_BS] > 0) == (sign_BS[labelled_BS] > 0)))


def cost_calibration_error(cost_BS: Float[np.ndarray, "B S"], sign_BS: Float[np.ndarray, "B S"]) -> float | None:
    """Expected calibration error of sigmoid(cost) as the probability of "unsafe", over the labelled answers; None without any."""
    chex.assert_rank([cost_BS, sign_BS], 2)
    chex.assert_equal_shape([cost_BS, sign_BS])
    labelled_BS = sign_BS != 0
    if not labelled_BS.any():
        return None
    return calibration_error(sigmoid(cost_BS[labelled_BS]), sign_BS[labelled_BS] > 0, BINS)


def head_agreement(reward_BS: Float[np.ndarray, "B 2"], cost_BS: Float[np.ndarray, "B 2"]) -> float | None:
    """Share of the pairs in which the answer of higher reward is also the one of lower cost; a tie of either head counts half.

    Near 1 the two heads say the same, and a constraint on the cost adds nothing to the reward. None without pairs.
    """
    chex.assert_equal_shape([reward_BS, cost_BS])
    if not len(reward_BS):
        return None
    product_B = np.sign(reward_BS[:, 0] - reward_BS[:, 1]) * np.sign(cost_BS[:, 1] - cost_BS[:, 0])
    return float(np.mean((product_B + 1) / 2))


def reward_metrics(
    reward_BS: Float[np.ndarray, "B 2"],
    chosen_B: Int[np.ndarray, "B"],
    helpful_weight_B: Float[np.ndarray, "B"],
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """`pair_accuracy` (and per group `pair_accuracy_GROUP`), `pairs` decided, and `mean` and `std` of the scores."""
    metrics = {
        "pair_accuracy": pair_accuracy(reward_BS, chosen_B, helpful_weight_B),
        "pairs": float((helpful_weight_B > 0).sum()),
        "mean": float(reward_BS.mean()),
        "std": float(reward_BS.std()),
    }
    for name, rows in _members(groups, len(reward_BS)):
        metrics[f"pair_accuracy_{name}"] = pair_accuracy(reward_BS[rows], chosen_B[rows], helpful_weight_B[rows])
    return _present(metrics)


def cost_metrics(
    cost_BS: Float[np.ndarray, "B 2"],
    safer_B: Int[np.ndarray, "B"],
    safety_weight_B: Float[np.ndarray, "B"],
    sign_BS: Float[np.ndarray, "B 2"],
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """`pair_accuracy`, `sign_accuracy` (both also per group), `calibration_error`, counts, `mean`, `std`, and per-label means."""
    costlier_B = 1 - safer_B
    metrics = {
        "pair_accuracy": pair_accuracy(cost_BS, costlier_B, safety_weight_B),
        "pairs": float((safety_weight_B > 0).sum()),
        "sign_accuracy": sign_accuracy(cost_BS, sign_BS),
        "signs": float((sign_BS != 0).sum()),
        "calibration_error": cost_calibration_error(cost_BS, sign_BS),
        "mean": float(cost_BS.mean()),
        "std": float(cost_BS.std()),
        "mean_unsafe": float(cost_BS[sign_BS > 0].mean()) if (sign_BS > 0).any() else None,
        "mean_safe": float(cost_BS[sign_BS < 0].mean()) if (sign_BS < 0).any() else None,
    }
    for name, rows in _members(groups, len(cost_BS)):
        metrics[f"pair_accuracy_{name}"] = pair_accuracy(cost_BS[rows], costlier_B[rows], safety_weight_B[rows])
        metrics[f"sign_accuracy_{name}"] = sign_accuracy(cost_BS[rows], sign_BS[rows])
    return _present(metrics)


def model_metrics(
    reward_BS: Float[np.ndarray, "B 2"] | None,
    cost_BS: Float[np.ndarray, "B 2"] | None,
    chosen_B: Int[np.ndarray, "B"],
    helpful_weight_B: Float[np.ndarray, "B"],
    safer_B: Int[np.ndarray, "B"],
    safety_weight_B: Float[np.ndarray, "B"],
    sign_BS: Float[np.ndarray, "B 2"],
    groups: Sequence[str] | None = None,
) -> dict[str, float]:
    """`reward_model.*` and `cost_model.*` of one set of pairs, and `head_agreement` where there are both.

    Labels as in PairBatch; scores None where there is no head.
    """
    metrics = {}
    if reward_BS is not None:
        reward = reward_metrics(reward_BS, chosen_B, helpful_weight_B, groups)
        metrics |= {f"reward_model.{key}": value for key, value in reward.items()}
    if cost_BS is not None:
        cost = cost_metrics(cost_BS, safer_B, safety_weight_B, sign_BS, groups)
        metrics |= {f"cost_model.{key}": value for key, value in cost.items()}
    if reward_BS is not None and cost_BS is not None:
        metrics |= _present({"head_agreement": head_agreement(reward_BS, cost_BS)})
    return metrics


def _members(groups: Sequence[str] | None, rows: int) -> list[tuple[str, np.ndarray]]:
    if groups is None:
        return []
    if len(groups) != rows:
        raise ValueError(f"expected one group name per pair, got {len(groups)} for {rows} pairs")
    names = np.asarray(groups)
    return [(str(name), np.flatnonzero(names == name)) for name in np.unique(names) if name]


def _present(metrics: dict[str, float | None]) -> dict[str, float]:
    return {key: value for key, value in metrics.items() if value is not None}
