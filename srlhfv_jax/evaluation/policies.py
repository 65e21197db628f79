"""Sampling answers: prompt batches through a policy's `generate`, back to text.

The policy comes in as a callable, so this file needs no model: the caller binds parameters, key and sampling settings
(`srlhfv_jax.rollout.generate`), and optionally a scorer that reads each rollout while its batch is at hand.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from srlhfv_jax.batches import PromptBatch, Rollout
from srlhfv_jax.evaluation.answers import Answers, make
from srlhfv_jax.parallel import hosts

Generate = Callable[[PromptBatch, int], Rollout]  # (prompts, index of the batch) -> rollout; the index seeds the batch
Decode = Callable[[Sequence[int]], str]  # response ids without padding -> text without special tokens
Score = Callable[[PromptBatch, Rollout], Mapping[str, np.ndarray]]  # -> {head: [B]}


def sample_answers(
    generate: Generate,
    batches: Iterable[tuple[PromptBatch, Bool[np.ndarray, "B"]]],
    prompts: Sequence[int],
    decode: Decode,
    *,
    temperature: float,
    score: Score | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[Answers, dict[str, Float[np.ndarray, "B"]]]:
    """Answer every prompt of `batches` once.

    Args:
        batches: prompts on the devices of all processes, with which rows are real; the others, which fill up the last batch, are
            thrown away.
        prompts: the number of each real row's prompt, in order.
        score: scores of learned models for each rollout.
        progress: told the number of answers so far after each batch.

    Returns:
        The answers and {head: scores_B} in the same order ({} without `score`).
    """
    texts, lengths, ended = [], [], []
    scores: dict[str, list[np.ndarray]] = {}
    for index, (batch, real_B) in enumerate(batches):
        rollout = generate(batch, index)
        tokens_BT, mask_BR, ended_B = hosts.to_host((rollout.tokens_BT, rollout.response_mask_BR, rollout.ended_B))
        tokens_BR = tokens_BT[:, -mask_BR.shape[1] :]
        for row in np.flatnonzero(real_B).tolist():
            texts.append(decode(tokens_BR[row][mask_BR[row]].tolist()))
            lengths.append(int(mask_BR[row].sum()))
            ended.append(bool(ended_B[row]))
        for name, values_B in (score(batch, rollout) if score else {}).items():
            scores.setdefault(name, []).append(np.asarray(values_B, np.float64)[real_B])
        if progress:
            progress(len(texts))
    answers = make(prompts, texts, lengths, ended, temperature)
    return answers, {name: np.concatenate(parts) for name, parts in scores.items()}
