"""Numbers on held-out rows that a supervised stage logs while it trains, and which way each of them is better.

`config.keep_best` names one of them; the names are those of result.json.
"""

from collections.abc import Iterator, Mapping
from typing import Literal

from srlhfv_jax.config.unread import Unread

Better = Literal["lower", "higher"]

SFT: Mapping[str, Better] = {"evaluation.loss": "lower"}
PAIRS: Mapping[str, Better] = {
    "evaluation.loss": "lower",
    "evaluation.reward_loss": "lower",
    "evaluation.cost_loss": "lower",
    "reward_model.pair_accuracy": "higher",
    "cost_model.pair_accuracy": "higher",
    "cost_model.sign_accuracy": "higher",
    "cost_model.calibration_error": "lower",
}
PREFERENCE: Mapping[str, Better] = {"evaluation.loss": "lower", "evaluation.accuracy": "higher"}
GUARD: Mapping[str, Better] = PAIRS | {
    "evaluation.severity_loss": "lower",
    "evaluation.category_loss": "lower",
    "guard.accuracy": "higher",
    "guard.f1": "higher",
    "guard.auroc": "higher",
    "guard.auprc": "higher",
    "guard.input.auroc": "higher",
    "guard.output.auroc": "higher",
    "guard.calibration_error": "lower",
    "guard.severity_accuracy": "higher",
    "guard.category_f1_macro": "higher",
}
METRICS: Mapping[str, Better] = SFT | PAIRS | PREFERENCE | GUARD


def unread(rows: bool, every: int, keep_best: str) -> Iterator[Unread]:
    """Settings of held-out rows that nothing reads.

    Args:
        rows: whether there are held-out rows.
        every: `evaluation_every`.
    """
    if not rows:
        yield Unread("evaluation_every", "there are no held-out rows, config.evaluation", 0)
    if not every:
        yield Unread("keep_best", "config.evaluation_every is 0: nothing is measured before the end", "")
    if not keep_best:
        yield Unread("patience", "it waits for a better config.keep_best, which names no metric", 0)
