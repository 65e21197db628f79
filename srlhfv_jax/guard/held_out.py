"""A guard on labelled rows: what it says of them, the thresholds that they set, and its numbers under these."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from srlhfv_jax.batches import GuardBatch
from srlhfv_jax.config import DataConfig, GuardConfig
from srlhfv_jax.data import guard_rows, loader
from srlhfv_jax.guard import measure, scoring
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.microbatches import over_rows
from srlhfv_jax.runs import inputs
from srlhfv_jax.supervised.train import Evaluate

Logits = Callable[[Any, GuardBatch], tuple[Array, Array]]  # (tree, batch) -> severities [B, 2, J] and categories [B, 2, A]


DEFAULT_THRESHOLD = 0.5  # on P(unsafe), where no rows calibrate it


class Judged(NamedTuple):
    """Held-out questions and answers, and what the guard says of them."""

    severity_BJ: np.ndarray  # P(severity > k)
    category_BA: np.ndarray
    labels: tuple[np.ndarray, ...]  # guard_rows.arrays, without its axis Q
    is_part: dict[str, np.ndarray]  # part -> which of them are of it
    groups: tuple[str, ...]


class HeldOut(NamedTuple):
    """Rows that nothing is learned from, and how a guard is measured on them. Its tree is whole, its heads unweighted."""

    settings: GuardConfig
    categories: tuple[str, ...]
    calibration: loader.Prepared | None
    evaluation: loader.Prepared | None
    pairs: Evaluate | None  # of the score heads beside the guard's
    logits: Logits
    mesh: Mesh

    def thresholds(self, tree: Any) -> dict[str, float]:
        """Part -> threshold on P(unsafe), by the rows of the calibration."""
        if self.calibration is None:
            return uncalibrated(self.settings)["thresholds"]
        return calibrate(judge(self.logits, tree, self.calibration, self.settings.data, self.mesh), self.settings)

    def numbers(self, tree: Any, thresholds: Mapping[str, float]) -> dict[str, float]:
        """`guard.*` of `evaluate`, those of the pairs, and losses; `evaluation.loss` is the guard's + pairs.coef times the pairs'."""
        numbers = {} if self.pairs is None else self.pairs(tree)
        if self.evaluation is None:
            return numbers
        judged = judge(self.logits, tree, self.evaluation, self.settings.data, self.mesh)
        own = losses(judged, self.settings.category_weight)
        total = own["evaluation.loss"] + self.settings.pairs.coef * numbers.get("evaluation.loss", 0.0)
        measured = evaluate(judged, thresholds, self.categories)
        return measured | numbers | own | {"evaluation.loss": total}


def uncalibrated(settings: GuardConfig) -> dict[str, Any]:
    """For guard.json, the thresholds that no rows have set."""
    return {"thresholds": dict.fromkeys(settings.parts, DEFAULT_THRESHOLD), "false_positive_rate": None}


def jit_logits(config: VLMConfig, mesh: Mesh, microbatches: int = 1) -> Logits:
    """`scoring.logits`, jitted, the rows of a batch in so many parts."""

    @functools.partial(jax.jit, out_shardings=hosts.row_sharding(mesh))
    def logits(tree: Any, batch: GuardBatch) -> tuple[Array, Array]:
        return over_rows(functools.partial(scoring.logits, config, tree), batch, microbatches)

    return logits


def judge(logits: Logits, tree: Any, rows: loader.Prepared, data: DataConfig, mesh: Mesh) -> Judged:
    """Every question and answer of rows that were prepared, in order; `logits` are those of `jit_logits`."""
    severity_BQJ, category_BQA = scoring.probabilities(logits, tree, inputs.in_order(rows, data, mesh))
    given = [rows.labels[row.row] for row in rows.rows]
    judged_BQ = np.array([[labels != guard_rows.UNKNOWN for labels in both] for both in given])
    row_B, part_B = np.nonzero(judged_BQ)
    return Judged(
        severity_BQJ[judged_BQ],
        category_BQA[judged_BQ],
        tuple(array[judged_BQ] for array in guard_rows.arrays(given, rows.categories)),
        {part: part_B == index for index, part in enumerate(guard_rows.PARTS)},
        tuple(rows.rows[row].example.meta.get("category", "") for row in row_B),
    )


def calibrate(judged: Judged, settings: GuardConfig) -> dict[str, float]:
    """Part -> threshold on P(unsafe), for `settings.false_positive_rate`.

    With one for all parts that rate is of all their rows. At an equal probability the next false alarm buys equally many
    detections in either part (Neyman and Pearson): no other split of the alarms detects more, if the probabilities are right.
    """
    unsafe_B, known_B = judged.labels[0][:, 0], judged.labels[1][:, 0]

    def threshold(rows: np.ndarray) -> float:
        return measure.threshold(judged.severity_BJ[rows, 0], unsafe_B[rows], settings.false_positive_rate)

    if settings.thresholds == "one":
        return dict.fromkeys(settings.parts, threshold(known_B))
    return {part: threshold(judged.is_part[part] & known_B) for part in settings.parts}


def evaluate(judged: Judged, thresholds: Mapping[str, float], categories: Sequence[str]) -> dict[str, float]:
    """`guard.*` over all rows, and `guard.PART.*`."""
    threshold_B = np.zeros(len(judged.severity_BJ))
    for part, value in thresholds.items():
        threshold_B[judged.is_part[part]] = value
    level_B = scoring.levels(judged.severity_BJ, threshold_B)
    numbers = {}
    everything = {"guard": np.ones(len(level_B), bool)} | {f"guard.{part}": judged.is_part[part] for part in thresholds}
    for name, rows in everything.items():
        metrics = measure.metrics(
            judged.severity_BJ[rows],
            judged.category_BA[rows],
            level_B[rows],
            threshold_B[rows],
            tuple(array[rows] for array in judged.labels),
            categories,
            [group for group, chosen in zip(judged.groups, rows) if chosen],
        )
        numbers |= {f"{name}.{key}": value for key, value in metrics.items()}
    return numbers


def losses(judged: Judged, category_weight: float) -> dict[str, float]:
    """`evaluation.severity_loss` and `evaluation.category_loss` in nats, where there are labels, and their weighted sum, `evaluation.loss`.

    Of the probabilities of the data as it is: classes weigh nothing here.
    """
    exceeds_BJ, known_BJ, category_BA, category_known_BA = judged.labels
    numbers = {}
    if known_BJ.any():
        numbers["evaluation.severity_loss"] = measure.log_loss(judged.severity_BJ[known_BJ], exceeds_BJ[known_BJ])
    if category_known_BA.any():
        said, named = judged.category_BA[category_known_BA], category_BA[category_known_BA]
        numbers["evaluation.category_loss"] = measure.log_loss(said, named)
    total = numbers.get("evaluation.severity_loss", 0.0) + category_weight * numbers.get("evaluation.category_loss", 0.0)
    return numbers | {"evaluation.loss": total}
