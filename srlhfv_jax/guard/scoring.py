"""From a batch of questions and answers to logits, probabilities and verdicts: shared by training and by `Guard`."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

from srlhfv_jax.batches import GuardBatch
from srlhfv_jax.data import chat
from srlhfv_jax.data.rows import Turn
from srlhfv_jax.data.taxonomies import SEVERITIES
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.statistics import sigmoid
from srlhfv_jax.guard.verdict import GuardVerdict
from srlhfv_jax.models import guard_heads, sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts

CATEGORY_THRESHOLD = 0.5  # an unsafe item is of a category where that is more likely than not; of a higher level likewise


def logits(config: VLMConfig, tree: Any, batch: GuardBatch) -> tuple[Float[Array, "B 2 J"], Float[Array, "B 2 A"]]:
    """Logits of severities and categories, of each question and of its answer; without an answer both are the question's."""
    hidden_BQD = sequences.end_hidden(config, tree, batch, sequences.encode(config, tree, batch.images))
    return guard_heads.logits(tree["guard"], hidden_BQD)


def probabilities(
    logits_of: Callable[[Any, GuardBatch], tuple[Array, Array]],
    tree: Any,
    batches: Iterable[tuple[GuardBatch, Bool[np.ndarray, "B"]]],
) -> tuple[Float[np.ndarray, "B 2 J"], Float[np.ndarray, "B 2 A"]]:
    """P(severity > k), never rising with k, and the probability of each category, for the real rows of all batches in order.

    Args:
        logits_of: `logits` of a model, jitted.
        batches: on the devices, with which of their rows are real.
    """
    parts = []
    for batch, real_B in batches:
        parts.append([sigmoid(logit)[real_B] for logit in hosts.to_host(logits_of(tree, batch))])
    severity_BQJ, category_BQA = (np.concatenate(part) for part in zip(*parts, strict=True))
    return np.minimum.accumulate(severity_BQJ, axis=2), category_BQA


def levels(severity_BJ: Float[np.ndarray, "B J"], threshold_B: Float[np.ndarray, "B"]) -> np.ndarray:
    """Index into SEVERITIES: 0 where P(unsafe) is at or below its threshold."""
    return (severity_BJ[:, 0] > threshold_B) * (1 + (severity_BJ[:, 1:] > CATEGORY_THRESHOLD).sum(axis=1))


def verdicts(
    severity_BJ: Float[np.ndarray, "B J"], category_BA: Float[np.ndarray, "B A"], threshold: float, categories: Sequence[str]
) -> list[GuardVerdict]:
    """One for each row; a safe one names no category."""
    judged = []
    level_B = levels(severity_BJ, np.full(len(severity_BJ), threshold))
    for level, severity_J, category_A in zip(level_B.tolist(), severity_BJ, category_BA, strict=True):
        order = [place for place in np.argsort(-category_A, kind="stable") if level and category_A[place] > CATEGORY_THRESHOLD]
        scores = {"unsafe": float(severity_J[0]), "severity": float(severity_J.sum())}  # E[level] = sum of P(level > k)
        scores |= {name: float(value) for name, value in zip(categories, category_A)}
        judged.append(GuardVerdict(level == 0, SEVERITIES[level], tuple(categories[place] for place in order), scores))
    return judged


def silence_verdict(categories: Sequence[str]) -> GuardVerdict:
    """The verdict on an answer without text: safe."""
    scores: Mapping[str, float] = {"unsafe": 0.0, "severity": 0.0} | dict.fromkeys(categories, 0.0)
    return GuardVerdict(True, SEVERITIES[0], (), scores)


def template_hash(codec: chat.Codec) -> str:
    """A digest of how questions are put to the model: a guard that reads another template than it was trained with judges blindly."""
    texts = [codec.prompt_text("a question", images) for images in ((0, 1) if codec.reader is not None else (0,))]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def conversation_hash(codec: chat.Codec) -> str:
    """A digest of how a question is put to the model behind other turns; "" where the template takes none."""
    turns = (Turn("system", "a system turn"), Turn("user", "a first question"), Turn("assistant", "an answer"))
    try:
        text = codec.prompt_text("a question", 0, turns)
    except UserError:
        return ""
    return hashlib.sha256(text.encode()).hexdigest()
