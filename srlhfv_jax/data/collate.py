"""From token ids to the padded arrays of batches.py: the one place where padding, masks and positions are made.

`[prompt, left-padded to P | response, right-padded to R]`. The masks come from lengths, never from token values, so a pad id may
equal any token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from srlhfv_jax.batches import PairBatch, PromptBatch, SupervisedBatch
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.tokens import Encoded, Ids

Pixels = Float[np.ndarray, "B C Y X"] | None


class Frame(NamedTuple):
    """The size of every sequence, and what fills it."""

    prompt_length: int  # P
    response_length: int  # R
    pad_id: int


class Sequences(NamedTuple):
    """Padded sequences of any leading shape."""

    tokens_BT: Int[np.ndarray, "B T"]
    positions_BT: Int[np.ndarray, "B T"]
    mask_BT: Bool[np.ndarray, "B T"]
    response_mask_BR: Bool[np.ndarray, "B R"]


def sequences(prompts: Sequence[Ids], responses: Sequence[Ids], frame: Frame) -> Sequences:
    """Pad prompts on the left and responses on the right. With R = 0 these are the prompts alone."""
    p_length, r_length = frame.prompt_length, frame.response_length
    tokens_BT = np.full((len(prompts), p_length + r_length), frame.pad_id, np.int32)
    mask_BT = np.zeros(tokens_BT.shape, bool)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        assert len(prompt) <= p_length and len(response) <= r_length, "tokens.encode drops rows that do not fit"
        real = slice(p_length - len(prompt), p_length + len(response))
        tokens_BT[row, real] = np.concatenate([prompt, response])
        mask_BT[row, real] = True
    # 0 at the first real token; pads repeat 0 on the left and the last position on the right.
    positions_BT = np.maximum(np.cumsum(mask_BT, axis=1, dtype=np.int32) - 1, 0)
    return Sequences(tokens_BT, positions_BT, mask_BT, mask_BT[:, p_length:].copy())


def supervised(encoded: Sequence[Encoded], pixels_BCYX: Pixels, frame: Frame) -> SupervisedBatch:
    """One response per prompt; of a pair, the more helpful one."""
    chosen = [row.responses[supervised_side(row.example)] for row in encoded]
    return SupervisedBatch(*sequences([row.prompt for row in encoded], chosen, frame), pixels_BCYX)


def pairs(encoded: Sequence[Encoded], pixels_BCYX: Pixels, frame: Frame, *, sign: str) -> PairBatch:
    """Both responses and both preferences; `sign` is "label" or "graded"."""
    sides = [sequences([row.prompt for row in encoded], [row.responses[side] for row in encoded], frame) for side in (0, 1)]
    both = Sequences(*(np.stack(arrays, axis=1) for arrays in zip(*sides, strict=True)))
    examples = [row.example for row in encoded]
    return PairBatch(
        *both,
        pixels_BCYX=pixels_BCYX,
        chosen_B=np.asarray([row.chosen or 0 for row in examples], np.int32),
        helpful_weight_B=np.asarray([row.chosen is not None and not row.helpful_tie for row in examples], np.float32),
        safer_B=np.asarray([row.safer or 0 for row in examples], np.int32),
        safety_weight_B=np.asarray([row.safer is not None and not row.safety_tie for row in examples], np.float32),
        sign_BS=np.asarray([signs(row, sign) for row in examples], np.float32).reshape(-1, 2),
    )


def prompts(encoded: Sequence[Encoded], pixels_BCYX: Pixels, frame: Frame) -> PromptBatch:
    """Prompts to sample from."""
    empty = [np.zeros(0, np.int32)] * len(encoded)
    padded = sequences([row.prompt for row in encoded], empty, frame._replace(response_length=0))
    row_B = np.asarray([row.row for row in encoded], np.int32)
    return PromptBatch(padded.tokens_BT, padded.positions_BT, padded.mask_BT, pixels_BCYX, row_B)


def supervised_side(example: Example) -> int:
    """Which response is learned from.

    Raises:
        Unusable: there is none, or no preference says which.
    """
    if not example.responses:
        raise Unusable("missing_response", "a supervised row needs a response")
    if len(example.responses) == 1:
        return 0
    if example.chosen is None:
        raise Unusable("missing_label", "a pair without a helpfulness preference: which response should be learned?")
    return example.chosen


def signs(example: Example, sign: str) -> tuple[float, float]:
    """Target signs: +1 unsafe, -1 safe ("label"); -harmless_rate or the signed severity ("graded"); 0 where unlabelled."""
    assert len(example.responses) == 2 and sign in ("label", "graded")
    if sign == "graded":
        values = [0.0 if value is None else value for value in example.severity]
    else:
        values = [0.0 if value is None else (1.0 if value else -1.0) for value in example.unsafe]
    return (values[0], values[1]) if values else (0.0, 0.0)
