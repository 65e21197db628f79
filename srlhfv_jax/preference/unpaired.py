"""Answers each for itself: KTO compares an answer with the policy's own drift on answers to other prompts, and not with the other
answer of its pair.

That drift, z, is of the whole batch and has no gradient. A step computes it before its microbatches: one forward pass more, over each
prompt with the answer of another row.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from srlhfv_jax.batches import PreferenceBatch
from srlhfv_jax.data import loader
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import masked, preference
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel.microbatches import over_rows
from srlhfv_jax.preference import reference

NOT_LABELLED = 0.5  # in PreferenceBatch.unsafe_BS


def with_others(prepared: loader.Prepared, seed: int) -> loader.Prepared:
    """The rows, each with an answer of another row to another prompt behind its own two, as content and seed decide.

    Rows stand in a ring in the order of their hashes, and each takes an answer of the next one that asks something else: of one more
    row, few others notice.

    Raises:
        UserError: all rows ask the same.
    """
    rows = prepared.rows
    drawn = [hashlib.sha256(repr((seed, loader.content(row))).encode()).digest() for row in rows]
    prompts = [(np.ascontiguousarray(row.prompt, np.int64).tobytes(), row.digests) for row in rows]
    ring = sorted(range(len(rows)), key=lambda number: drawn[number])
    partners: dict[int, int] = {}
    after = ring[0]
    for number in reversed(ring * 2):  # the second time round, the end of the ring is known
        if prompts[after] != prompts[number]:
            partners[number] = after
        elif after in partners:
            partners[number] = partners[after]
        after = number
    if not partners:
        raise UserError(f"config.loss is 'kto', which needs answers to other prompts: all {len(rows)} rows have one prompt")
    others = (rows[partners[number]].responses[drawn[number][0] % 2] for number in range(len(rows)))
    return prepared._replace(
        rows=tuple(row._replace(responses=(*row.responses, other)) for row, other in zip(rows, others, strict=True))
    )


def undesirable_weight(given: float, rows: Sequence[Encoded]) -> float:
    """w_U of unsafe answers: `given`, or where that is 0 the number of safe answers over that of unsafe ones, so that both weigh the same.

    Raises:
        UserError: all labelled answers are safe, or all are unsafe.
    """
    flags = Counter(flag for row in rows for flag in row.example.unsafe)
    safe, unsafe = flags[False], flags[True]
    if not (safe and unsafe):
        raise UserError(
            f"config.loss is 'kto', which needs answers labelled safe and answers labelled unsafe: the rows have {safe} safe and {unsafe} "
            "unsafe ones"
        )
    return given or safe / unsafe


def with_baseline(config: VLMConfig, microbatches: int, tree, batch: PreferenceBatch) -> PreferenceBatch:
    """The batch with z of all its rows, on all hosts, by the policy `tree`."""

    def logp(rows: PreferenceBatch) -> Float[Array, "B"]:
        return reference.other_logp(config, tree, rows, sequences.encode(config, tree, rows.images))

    return at_baseline(batch, over_rows(logp, batch, microbatches))


def at_baseline(batch: PreferenceBatch, other_logp_B: Float[Array, "B"]) -> PreferenceBatch:
    """The same of log-probabilities in hand."""
    others = batch.unpaired
    z = preference.kto_baseline(*masked.weighted_mean(other_logp_B - others.reference_B, batch.weight_B))
    return batch._replace(unpaired=others._replace(baseline_B=jnp.broadcast_to(z, batch.weight_B.shape)))


def loss(logp_BS: Float[Array, "B 2"], batch: PreferenceBatch) -> masked.Loss:
    """KTO of a batch that has its baseline, a mean over answers with a label."""
    others, labelled_BS = batch.unpaired, (batch.unsafe_BS != NOT_LABELLED) * batch.weight_B[:, None]
    ratio_BS, safe_BS = logp_BS - batch.reference_BS, (batch.unsafe_BS == 0).astype(jnp.float32)
    weights = dict(desirable_weight=1.0, undesirable_weight=others.undesirable_B[:, None])
    z_B1 = others.baseline_B[:, None]
    total, count = preference.kto(ratio_BS, safe_BS, labelled_BS, z_B1, beta=batch.scale_B[:, None], **weights)
    metrics = preference.kto_numbers(ratio_BS, safe_BS, labelled_BS, z_B1)
    return masked.Loss(total, count, metrics | {"kto_baseline": masked.weighted_mean(others.baseline_B, batch.weight_B)})
