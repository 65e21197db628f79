"""Two answers to each prompt, for every kind of positions, made without torch."""

import jax
import jax.numpy as jnp
import numpy as np

from srlhfv_jax.batches import PairBatch, PromptBatch


def pairs(prompts: PromptBatch, length_BS, R: int, *, words: tuple[int, int], pad: int = 0, seed: int = 0) -> PairBatch:
    """Answers of these lengths, of random tokens from `words` (the first, one past the last), without preferences."""
    B, rng = len(prompts.row_B), np.random.default_rng(seed)
    length_BS1, time_R = np.asarray(length_BS)[:, :, None], np.arange(R)
    mask_BSR = time_R < length_BS1
    answer_BSR = np.where(mask_BSR, rng.integers(*words, mask_BSR.shape), pad).astype(np.int32)
    positions_BP = np.asarray(prompts.positions_BP)
    axes = positions_BP.shape[2:]
    end_B11 = positions_BP.reshape(B, -1).max(axis=1)[:, None, None]
    at_BSR = (end_B11 + 1 + np.minimum(time_R, length_BS1 - 1)).astype(np.int32)
    at_BSR = np.broadcast_to(at_BSR.reshape(*at_BSR.shape, *(1,) * len(axes)), (*at_BSR.shape, *axes))
    both = (np.repeat(np.asarray(x)[:, None], 2, axis=1) for x in prompts[:3])
    joined = [np.concatenate(parts, axis=2) for parts in zip(both, (answer_BSR, at_BSR, mask_BSR))]
    side_B, weight_B = np.zeros(B, np.int32), np.zeros(B, np.float32)
    batch = PairBatch(*joined, mask_BSR, prompts.images, side_B, weight_B, side_B, weight_B, np.zeros((B, 2), np.float32))
    return jax.tree.map(jnp.asarray, batch)
