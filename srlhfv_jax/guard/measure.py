"""Numbers of a guard on labelled rows: flags, levels, categories, calibration; and the threshold for a false-positive rate.

"Positive" means unsafe. Numbers over rows without the label they need are absent. Standard ones are scikit-learn's.
"""

from collections.abc import Sequence

import chex
import numpy as np
from jaxtyping import Bool, Float
from sklearn import metrics as sk

from srlhfv_jax.data.taxonomies import SEVERITIES
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.rates import by_group
from srlhfv_jax.evaluation.statistics import calibration_error
from srlhfv_jax.guard.scoring import CATEGORY_THRESHOLD

BINS = 15


def threshold(score_B: Float[np.ndarray, "B"], unsafe_B: Bool[np.ndarray, "B"], false_positive_rate: float) -> float:
    """Half of the best F1 that "score > t" reaches on these rows, or the lowest t that flags at most `false_positive_rate` of the
    safe ones, whichever is higher.

    Half of the best F1 is the threshold of the best F1 where scores are probabilities (Lipton et al., arXiv 1402.1892, theorem 1).
    The t that has the best F1 on few rows is itself luck: any t in the gap between two scores has it.

    Raises:
        UserError: no safe or no unsafe row to set it by.
    """
    chex.assert_equal_shape([score_B, unsafe_B])
    safe = np.sort(score_B[~unsafe_B])[::-1]
    if not len(safe) or len(safe) == len(score_B):
        raise UserError(f"calibration needs safe and unsafe rows, got {len(safe)} safe of {len(score_B)}")
    if not 0 <= false_positive_rate < 1:
        raise UserError(f"config.false_positive_rate must be at least 0 and below 1, got {false_positive_rate}")
    precision, recall, _ = sk.precision_recall_curve(unsafe_B, score_B)
    best_f1 = float(np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9)))
    lowest = safe[int(false_positive_rate * len(safe) + 1e-9)]  # so many safe rows, and no more, may lie above
    if best_f1 / 2 > lowest:
        return best_f1 / 2
    # Up to the next score every t does the same on these rows: the middle is the least arbitrary.
    return float((lowest + np.min(score_B[score_B > lowest], initial=1.0)) / 2)


def flag_metrics(
    score_B: Float[np.ndarray, "B"], unsafe_B: Bool[np.ndarray, "B"], threshold_B: Float[np.ndarray, "B"]
) -> dict[str, float]:
    """`accuracy`, `precision`, `recall`, `f1`, `false_positive_rate`, `auroc`, `auprc`, `calibration_error`, `rows`, `unsafe_share`."""
    chex.assert_equal_shape([score_B, unsafe_B, threshold_B])
    if not len(score_B):
        return {}
    said_B = score_B > threshold_B
    precision, recall, f1, _ = sk.precision_recall_fscore_support(unsafe_B, said_B, average="binary", zero_division=0)
    numbers = {"accuracy": sk.accuracy_score(unsafe_B, said_B), "precision": precision, "recall": recall, "f1": f1}
    numbers |= {
        "rows": len(score_B),
        "unsafe_share": unsafe_B.mean(),
        "calibration_error": calibration_error(score_B, unsafe_B, BINS),
    }
    if not unsafe_B.all():
        numbers["false_positive_rate"] = said_B[~unsafe_B].mean()
    if unsafe_B.any() and not unsafe_B.all():
        numbers["auroc"] = sk.roc_auc_score(unsafe_B, score_B)
        numbers["auprc"] = sk.average_precision_score(unsafe_B, score_B)
    return {name: float(value) for name, value in numbers.items()}


def severity_metrics(level_B: np.ndarray, said_B: np.ndarray) -> dict[str, float]:
    """`severity_accuracy`, `severity_error` (mean levels apart), and `confusion.TRUE.SAID` counts where there are any."""
    chex.assert_equal_shape([level_B, said_B])
    if not len(level_B):
        return {}
    counts = sk.confusion_matrix(level_B, said_B, labels=range(len(SEVERITIES)))
    numbers = {
        "severity_accuracy": float((level_B == said_B).mean()),
        "severity_error": float(np.abs(level_B - said_B).mean()),
    }
    places = [(true, named) for true in range(len(SEVERITIES)) for named in range(len(SEVERITIES)) if counts[true, named]]
    return numbers | {f"confusion.{SEVERITIES[true]}.{SEVERITIES[named]}": float(counts[true, named]) for true, named in places}


def category_metrics(
    probability_BA: Float[np.ndarray, "B A"], label_BA: Bool[np.ndarray, "B A"], said_unsafe_B: Bool[np.ndarray, "B"], names
) -> dict[str, float]:
    """`category_exact_match`, `category_f1_micro`, `category_f1_macro` (over categories that occur), `category_f1.NAME`.

    A row that is called safe names no category.
    """
    chex.assert_equal_shape([probability_BA, label_BA])
    if not len(label_BA):
        return {}
    said_BA = (probability_BA > CATEGORY_THRESHOLD) & said_unsafe_B[:, None]
    present = [place for place in range(len(names)) if label_BA[:, place].any()]
    f1 = {place: float(sk.f1_score(label_BA[:, place], said_BA[:, place], zero_division=0)) for place in present}
    numbers = {"category_exact_match": float((said_BA == label_BA).all(axis=1).mean())}
    if present:
        numbers["category_f1_micro"] = float(sk.f1_score(label_BA.ravel(), said_BA.ravel(), zero_division=0))
        numbers["category_f1_macro"] = float(np.mean(list(f1.values())))
    return numbers | {f"category_f1.{names[place]}": value for place, value in f1.items()}


def log_loss(probability: Float[np.ndarray, "N"], label: Bool[np.ndarray, "N"]) -> float:
    """Mean of -log P(the label), in nats; probabilities are cut off 1e-7 from 0 and 1, the steps of float32."""
    chex.assert_equal_shape([probability, label])
    said = np.clip(np.asarray(probability, np.float64), 1e-7, 1 - 1e-7)
    return float(-np.log(np.where(label, said, 1 - said)).mean())


def metrics(
    severity_BJ: Float[np.ndarray, "B J"],
    category_BA: Float[np.ndarray, "B A"],
    said_level_B: np.ndarray,
    threshold_B: Float[np.ndarray, "B"],
    labels: tuple[Bool[np.ndarray, "B A"], ...],
    categories: Sequence[str],
    groups: Sequence[str],
) -> dict[str, float]:
    """Everything above on one set of rows; `recall_by_severity.LEVEL` and `accuracy_by_group.GROUP` beside it.

    Args:
        severity_BJ, category_BA: probabilities.
        said_level_B: index of the level that the guard names.
        threshold_B: on P(unsafe), of each row.
        labels: as `data.guard_rows.arrays` gives them.
        groups: of each row, "" = none.
    """
    exceeds_BJ, known_BJ, label_BA, category_known_BA = labels
    flagged_B, graded_B, named_B = known_BJ[:, 0], known_BJ.all(axis=1), category_known_BA.all(axis=1)
    unsafe_B, said_B = exceeds_BJ[:, 0], severity_BJ[:, 0] > threshold_B
    level_B = exceeds_BJ.sum(axis=1)
    numbers = flag_metrics(severity_BJ[flagged_B, 0], unsafe_B[flagged_B], threshold_B[flagged_B])
    numbers |= severity_metrics(level_B[graded_B], said_level_B[graded_B])
    numbers |= category_metrics(category_BA[named_B], label_BA[named_B], said_B[named_B], categories)
    right_B = (said_B == unsafe_B).astype(np.float64)
    severities = [SEVERITIES[level] if graded and level else "" for level, graded in zip(level_B, graded_B)]
    numbers |= by_group("recall_by_severity", right_B, flagged_B, severities)
    return numbers | by_group("accuracy_by_group", right_B, flagged_B, groups)
