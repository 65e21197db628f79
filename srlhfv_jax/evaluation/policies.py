"""Sampling answers: prompt batches through a policy's `generate`, back to text.

The policy comes in as a callable, so this file needs no model: the caller binds parameters, key and sampling settings
(`srlhfv_jax.rollout.generate`), and optionally a scorer that reads each rollout while its batch is at hand.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from srlhfv_jax.batches import PromptBatch, Rollout
from srlhfv_jax.evaluation.answers import Answers, make

Generate = Callable[[PromptBatch, int], Rollout]  # (prompts, index of the batch) -> rollout; the index seeds the batch
Decode = Callable[[Sequence[int]], str]  # response ids without padding -> text without special tokens
Score = Callable[[PromptBatch, Rollout], Mapping[str, np.ndarray]]  # -> {head: [B]}
PAD_ROW = -1  # `row_B` of the rows that only fill up the last batch


def sample_answers(
    generate: Generate,
    batches: Iterable[PromptBatch],
    decode: Decode,
    *,
    temperature: float,
    score: Score | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Answers, dict[str, Float[np.ndarray, "B"]]]:
    """Answer every prompt of `batches` once; rows with `row_B` = PAD_ROW are thrown away (see `only_real`).

    Args:
        score: scores of learned models for each rollout.
        progress: told the number of answers so far after each batch.

    Returns:
        The answers and {head: scores_B} in the same order ({} without `score`).
    """
    prompts, texts, lengths, ended = [], [], [], []
    scores: dict[str, list[np.ndarray]] = {}
    for index, batch in enumerate(batches):
        rollout = generate(batch, index)
        row_B = np.asarray(batch.row_B)
        real = np.flatnonzero(row_B != PAD_ROW)
        mask_BR = np.asarray(rollout.response_mask_BR)
        tokens_BR = np.asarray(rollout.tokens_BT)[:, -mask_BR.shape[1] :]
        ended_B = np.asarray(rollout.ended_B)
        for row in real.tolist():
            texts.append(decode(tokens_BR[row][mask_BR[row]].tolist()))
            lengths.append(int(mask_BR[row].sum()))
            ended.append(bool(ended_B[row]))
            prompts.append(int(row_B[row]))
        for name, values_B in (score(batch, rollout) if score else {}).items():
            scores.setdefault(name, []).append(np.asarray(values_B, np.float64)[real])
        if progress:
            progress(len(texts))
    answers = make(prompts, texts, lengths, ended, temperature)
    return answers, {name: np.concatenate(parts) for name, parts in scores.items()}


def only_real(batches: Iterable[tuple[PromptBatch, Bool[np.ndarray, "B"]]]) -> Iterator[PromptBatch]:
    """Mark the filler rows of `data.loader.all_batches` with PAD_ROW."""
    for batch, real_B in batches:
        yield batch._replace(row_B=np.where(real_B, batch.row_B, PAD_ROW))
