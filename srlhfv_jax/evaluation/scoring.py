"""The one scorer of texts: reward and cost of answers, each read after its last token by checkpoints with score heads.

jit_scores     -> of a rollout, a supervised batch or a pair, by one tree or several
jit_logp       -> of a rollout, its log-probability under a policy
model_scores   the loop over batches of answers
score_pairs    the loop over labelled pairs
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from srlhfv_jax.batches import Images, PairBatch, PreferenceBatch
from srlhfv_jax.config import DataConfig, ModelConfig
from srlhfv_jax.data import loader
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.heads import load_heads
from srlhfv_jax.hf.load import Pretrained, checkpoint_folder
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import complete
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.microbatches import over_rows
from srlhfv_jax.rollout.generate import Vocabulary
from srlhfv_jax.runs import checkpoints, inputs

Scores = dict[str, Float[Array, "B *S"]]  # head -> [B], or [B, 2] of pairs

Logp = Callable[[VLMConfig, Vocabulary, Mapping[str, Any], Any, Images | None], Scores]  # of `jit_logp`

SCORER = "scorer"  # the name of a tree that is alone
LOGP = "log-probability"  # of an answer, beside scores of heads
LABELS = ("chosen_B", "helpful_weight_B", "safer_B", "safety_weight_B", "sign_BS")  # as `pair_accuracy.model_metrics` takes them


def jit_scores(
    config: VLMConfig,
    mesh: Mesh,
    trees: Sequence[str] = (SCORER,),
    own_tower: Sequence[str] = (SCORER,),
    microbatches: int = 1,
) -> Callable[[Mapping[str, Any], Any, Images | None], Scores]:
    """({name: tree}, sequences, images) -> every head's scores, jitted.

    Args:
        trees: names of the trees whose heads score.
        own_tower: those of them that look at the images themselves; the others read the features of the sequences.
        microbatches: parts of the rows, scored one after the other.
    """

    def of_rows(by_name: Mapping[str, Any], batch: Any, images: Images | None) -> Scores:
        read = sequences.pair_scores if isinstance(batch, PairBatch | PreferenceBatch) else sequences.end_scores
        scores: Scores = {}
        for name in trees:
            features = sequences.encode(config, by_name[name], images) if name in own_tower else batch.features
            scores |= read(config, by_name[name], batch, features)
        return scores

    @functools.partial(jax.jit, out_shardings=hosts.row_sharding(mesh))
    def score(by_name: Mapping[str, Any], batch: Any, images: Images | None) -> Scores:
        by_name = complete(by_name)
        return over_rows(lambda rows: of_rows(by_name, *rows), (batch, images), microbatches)

    return score


def jit_logp(mesh: Mesh) -> Logp:
    """(config, vocabulary, params, sequences, images) -> {LOGP: log π(y|x)} of each response, in nats at temperature 1, jitted.

    Checkpoints of one architecture and vocabulary compile once. As in a rollout, ids that are never sampled have no probability.
    """

    def log_probability(
        config: VLMConfig, vocabulary: Vocabulary, params: Mapping[str, Any], batch: Any, images: Images | None
    ) -> Scores:
        tree = {"backbone": params}
        features, never_V = sequences.encode(config, tree, images), vocabulary.never_V(config.text.vocab)
        return {LOGP: jnp.sum(sequences.response_logp(config, tree, batch, features, never_V=never_V)[0], axis=1)}

    return jax.jit(log_probability, static_argnames=("config", "vocabulary"), out_shardings=hosts.row_sharding(mesh))


def scorer_tree(checkpoint: Pretrained) -> dict[str, Any]:
    """A checkpoint with score heads as `jit_scores` takes it."""
    return {SCORER: {"backbone": checkpoint.params, "heads": checkpoint.heads}}


def model_scores(
    score: Callable[[Any], Mapping[str, Any]], batches: Iterable[tuple[Any, Bool[np.ndarray, "B"]]]
) -> dict[str, Float[np.ndarray, "B ..."]]:
    """Scores of the real rows of all batches, in order, in float64.

    Args:
        score: batch -> {head: [B], or [B, 2] for pairs}.
        batches: with which rows are real (`data.loader.all_batches`).

    Raises:
        UserError: a score is not finite; names the head and the row.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for batch, real_B in batches:
        for name, values in score(batch).items():
            parts.setdefault(name, []).append(np.asarray(values, np.float64)[np.asarray(real_B)])
    scores = {name: np.concatenate(values) for name, values in parts.items()}
    for name, values in scores.items():
        finite_B = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
        if not finite_B.all():
            row = int(np.flatnonzero(~finite_B)[0])
            raise UserError(f"the {name} model gave row {row} a score that is not finite; check its checkpoint, or use float32")
    return scores


def score_pairs(
    score: Callable[[Mapping[str, Any], Any, Images | None], Scores],
    tree: Any,
    rows: loader.Prepared,
    data: DataConfig,
    mesh: Mesh,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every pair, in order: {head: scores_BS}, and {label (one of LABELS): its values}; `score` is that of `jit_scores`."""
    scores: dict[str, list[np.ndarray]] = {}
    labels: dict[str, list[np.ndarray]] = {}
    for batch, real_B in inputs.in_order(rows, data, mesh):
        for name, scores_BS in hosts.to_host(score({SCORER: tree}, batch, batch.images)).items():
            scores.setdefault(name, []).append(scores_BS[real_B])
        for name in LABELS:
            labels.setdefault(name, []).append(hosts.to_host(batch._asdict()[name])[real_B])
    return tuple({name: np.concatenate(parts) for name, parts in gathered.items()} for gathered in (scores, labels))


def check_score_heads(path: str, model: ModelConfig) -> None:
    """Raise UserError, before any answer is sampled, unless the checkpoint has score heads."""
    if not load_heads(checkpoints.load_shape(path, model).config, checkpoint_folder(path), mesh=None):
        raise UserError(f"--scorer={path} has no score heads: give the workdir of `srlhfv scores`, `reward` or `cost`")
