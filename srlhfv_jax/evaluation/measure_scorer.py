"""Accuracy of reward and cost models on labelled pairs, and the share of it that they owe to the pictures."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from srlhfv_jax.config import DataConfig, ModelConfig
from srlhfv_jax.data import sources
from srlhfv_jax.data.rows import Example
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import controls, pair_accuracy
from srlhfv_jax.evaluation.score_metrics import COST, REWARD
from srlhfv_jax.evaluation.scoring import LABELS, jit_scores, score_pairs
from srlhfv_jax.parallel import hosts
from srlhfv_jax.runs import checkpoints, inputs

WITH_IMAGES = ("pair_accuracy", "sign_accuracy", "calibration_error")  # measured again with other pictures


class ScoredPairs(NamedTuple):
    """One head on one set of pairs."""

    rows: tuple[int, ...]  # of the data
    score_BS: np.ndarray
    labels: tuple[np.ndarray, ...]  # scoring.LABELS
    groups: tuple[str, ...]


def measure(
    paths: Sequence[str], data: DataConfig, model: ModelConfig, mesh: jax.sharding.Mesh, *, seed: int
) -> dict[str, float]:
    """`reward_model.*`, `cost_model.*` and `head_agreement` of `pair_accuracy.model_metrics`, per category too; and, where the pairs
    have pictures, accuracies and calibration with the pictures shuffled (`NAME_image_shuffled`) and grey (`NAME_image_blanked`).

    Args:
        paths: one checkpoint with both heads, or two with one each.

    Raises:
        UserError: a head is in none, or in two of them; no usable pair.
    """
    examples = sources.load_examples(data)
    hosts.say(f"{data.path}: {len(examples)} of {examples.source_rows} rows; {sources.describe_drops(examples.drops)}")
    versions = {"": examples}
    if any(example.images for example in examples):
        versions |= {"_image_shuffled": controls.shuffled(examples, seed), "_image_blanked": controls.blanked(examples)}
    by_version: dict[str, dict[str, ScoredPairs]] = {suffix: {} for suffix in versions}
    for path in paths:
        loaded = checkpoints.load(path, model, mesh)
        for suffix, version in versions.items():
            hosts.say(f"{path}: pairs{suffix.replace('_', ' ')}")
            for head, scored in _score(loaded, version, data, mesh).items():
                if head in by_version[suffix]:
                    raise UserError(f"--scorer: two checkpoints have the head {head!r}: give one of each, or one with both")
                by_version[suffix][head] = scored
    numbers = {}
    for suffix, heads in by_version.items():
        metrics = _metrics(heads)
        numbers |= {
            name + suffix: value for name, value in metrics.items() if not suffix or name.rpartition(".")[2] in WITH_IMAGES
        }
    return numbers


def _score(loaded, examples: Sequence[Example], data: DataConfig, mesh) -> dict[str, ScoredPairs]:
    rows = inputs.fit_loosely("pairs", examples, data, loaded)
    tree = {"backbone": loaded.params, "heads": loaded.heads}
    scores, labels = score_pairs(jit_scores(loaded.config, mesh), tree, rows, data, mesh)
    places = tuple(row.row for row in rows.rows)
    groups = tuple(row.example.meta.get("category", "") for row in rows.rows)
    return {
        head: ScoredPairs(places, score_BS, tuple(labels[name] for name in LABELS), groups) for head, score_BS in scores.items()
    }


def _metrics(heads: dict[str, ScoredPairs]) -> dict[str, float]:
    """Each head on its own pairs; their agreement on pairs that both can read."""
    numbers = {}
    for head, scored in heads.items():
        reward, cost = (scored.score_BS if head == name else None for name in (REWARD, COST))
        numbers |= pair_accuracy.model_metrics(reward, cost, *scored.labels, groups=scored.groups)
    if {REWARD, COST} <= heads.keys():
        _, first, second = np.intersect1d(heads[REWARD].rows, heads[COST].rows, return_indices=True)
        agreement = pair_accuracy.head_agreement(heads[REWARD].score_BS[first], heads[COST].score_BS[second])
        numbers |= {} if agreement is None else {"head_agreement": agreement}
    return numbers
