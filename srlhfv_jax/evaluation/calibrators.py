"""Fits of P(unsafe | cost), normalisers of scores, and how well probabilities agree with labels. NumPy, SciPy and scikit-learn."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import numpy as np
from jaxtyping import Bool, Float
from scipy.optimize import minimize

from srlhfv_jax.config import choose
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.statistics import calibration_error, sigmoid
from srlhfv_jax.losses.calibration import Calibration

PLATT, ISOTONIC = "platt", "isotonic"
FITS = (PLATT, ISOTONIC)
FOLDS, BINS = 5, 10
ENOUGH = 1000  # answers from which on steps are the better fit (Niculescu-Mizil & Caruana, ICML 2005, figure 6)


class Affine(NamedTuple):
    """(score - shift) / scale."""

    shift: float
    scale: float


def fit(kind: str, cost_B: Float[np.ndarray, "B"], unsafe_B: Bool[np.ndarray, "B"]) -> Calibration:
    """P(unsafe | cost) from labels.

    Args:
        kind: of FITS; "": by the number of answers.

    Raises:
        UserError: labels of one class alone, or costs that do not rise where answers are unsafe.
    """
    chex.assert_equal_shape([cost_B, unsafe_B])
    check_classes(unsafe_B)
    return {PLATT: platt, ISOTONIC: isotonic}[choose(kind or usual(len(cost_B)), "--fit", *FITS)](cost_B, unsafe_B)


def usual(answers: int) -> str:
    """The fit that suits this number of answers."""
    return ISOTONIC if answers >= ENOUGH else PLATT


def check_classes(unsafe_B: Bool[np.ndarray, "B"]) -> None:
    """Raise UserError unless both classes are there."""
    unsafe = int(unsafe_B.sum())
    if unsafe in (0, len(unsafe_B)):
        raise UserError(
            f"calibration needs answers labelled safe and answers labelled unsafe, got {len(unsafe_B) - unsafe} and {unsafe}: give rows "
            "with both"
        )


def platt(cost_B: Float[np.ndarray, "B"], unsafe_B: Bool[np.ndarray, "B"]) -> Calibration:
    """Slope and intercept of the greatest likelihood, with Platt's targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2), which keep it finite
    where costs separate the classes. Convex: Newton's steps with a trust region."""
    unsafe, scale = int(unsafe_B.sum()), float(cost_B.std()) or 1.0
    target_B = np.where(unsafe_B, (unsafe + 1) / (unsafe + 2), 1 / (len(unsafe_B) - unsafe + 2))
    x_B2 = np.stack([(cost_B - cost_B.mean()) / scale, np.ones(len(cost_B))], axis=1)

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        logit_B = x_B2 @ w
        value = np.logaddexp(0.0, logit_B) - target_B * logit_B
        return float(value.mean()), x_B2.T @ (sigmoid(logit_B) - target_B) / len(cost_B)

    def curvature(w: np.ndarray) -> np.ndarray:
        said_B = sigmoid(x_B2 @ w)
        return (x_B2 * (said_B * (1 - said_B))[:, None]).T @ x_B2 / len(cost_B)

    slope, intercept = minimize(loss, np.zeros(2), jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-9}).x
    if slope <= 0:
        raise UserError(
            "the cost does not rise where answers are unsafe, so it cannot be calibrated: train the scorer on more labels"
        )
    return Calibration(float(slope / scale), float(intercept - slope * cost_B.mean() / scale))


def isotonic(cost_B: Float[np.ndarray, "B"], unsafe_B: Bool[np.ndarray, "B"]) -> Calibration:
    """The rising steps with the least squared error."""
    from sklearn.isotonic import IsotonicRegression

    steps = IsotonicRegression(y_min=0.0, y_max=1.0, increasing=True, out_of_bounds="clip")
    steps.fit(cost_B.astype(np.float64), unsafe_B.astype(np.float64))
    costs, probabilities = steps.X_thresholds_, steps.y_thresholds_
    if probabilities[0] == probabilities[-1]:
        raise UserError(
            "the cost does not rise where answers are unsafe, so it cannot be calibrated: train the scorer on more labels"
        )
    return Calibration(0.0, 0.0, tuple(map(float, costs)), tuple(map(float, probabilities)))


def probability(calibration: Calibration, cost_B: Float[np.ndarray, "B"]) -> Float[np.ndarray, "B"]:
    """`losses.calibration.probability` in float64."""
    if calibration.costs:
        return np.interp(cost_B, calibration.costs, calibration.probabilities)
    return sigmoid(calibration.slope * np.asarray(cost_B, np.float64) + calibration.intercept)


def held_out(
    kind: str, cost_B: Float[np.ndarray, "B"], unsafe_B: Bool[np.ndarray, "B"], rows: Sequence[int], seed: int
) -> Float[np.ndarray, "B"] | None:
    """P(unsafe | cost) of each answer by a fit without its row's part of FOLDS; None where the rows are too few.

    Args:
        rows: of each answer: answers to one prompt are left out together.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.asarray(rows)
    folds = min(FOLDS, *(len(np.unique(groups[unsafe_B == unsafe])) for unsafe in (False, True)))
    if folds < 2:
        return None
    probability_B = np.zeros(len(cost_B))
    for fitted, left in StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(cost_B, unsafe_B, groups):
        if unsafe_B[fitted].all() or not unsafe_B[fitted].any():
            return None
        try:
            probability_B[left] = probability(fit(kind, cost_B[fitted], unsafe_B[fitted]), cost_B[left])
        except UserError:  # a part of few rows may lean the other way
            return None
    return probability_B


def numbers(probability_B: Float[np.ndarray, "B"], unsafe_B: Bool[np.ndarray, "B"]) -> dict[str, float]:
    """`calibration_error`, `log_loss` (nats) and `brier` of probabilities."""
    clipped_B = np.clip(probability_B, 1e-7, 1 - 1e-7)
    return {
        "calibration_error": calibration_error(probability_B, unsafe_B, BINS),
        "log_loss": float(-np.log(np.where(unsafe_B, clipped_B, 1 - clipped_B)).mean()),
        "brier": float(np.square(probability_B - unsafe_B).mean()),
    }


def reliability(probability_B: Float[np.ndarray, "B"], unsafe_B: Bool[np.ndarray, "B"]) -> list[dict[str, Any]]:
    """Bins of equal width that have answers: {"said": mean probability, "seen": share of unsafe ones, "rows"}."""
    index_B = np.minimum((probability_B * BINS).astype(np.int64), BINS - 1)
    members = [index_B == index for index in range(BINS)]
    return [
        {"said": float(probability_B[some].mean()), "seen": float(unsafe_B[some].mean()), "rows": int(some.sum())}
        for some in members
        if some.any()
    ]


def affine(score_B: Float[np.ndarray, "B"]) -> Affine:
    """Mean and standard deviation: a reward has no zero of its own."""
    return Affine(float(score_B.mean()), float(score_B.std()) or 1.0)


def scale(score_B: Float[np.ndarray, "B"]) -> float:
    """The root of the mean square: zero stays the border between safe and unsafe."""
    return float(np.sqrt(np.square(score_B, dtype=np.float64).mean())) or 1.0
