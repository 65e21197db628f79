"""From token ids to the padded arrays of batches.py: the one place where padding, masks and positions are made.

`[prompt, left-padded to P | response, right-padded to R]`. The masks come from lengths, never from token values, so a pad id may
equal any token.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from srlhfv_jax.batches import NO_FEATURE, GuardBatch, Images, PairBatch, PreferenceBatch, PromptBatch, SupervisedBatch, Unpaired
from srlhfv_jax.data import guard_rows
from srlhfv_jax.data.drops import Unusable
from srlhfv_jax.data.families import Layout, Reader
from srlhfv_jax.data.pictures import grid_places
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.tokens import Encoded, Ids


class Frame(NamedTuple):
    """The size of every sequence, and what fills it."""

    prompt_length: int  # P
    response_length: int  # R
    pad_id: int


class Terms(NamedTuple):
    """Numbers of a pair for a loss on preferences: the fields of a PreferenceBatch that neither tokens nor labels say."""

    reference: tuple[float, float]
    scale: float
    offset: float
    flip: float
    target: float
    sft: float
    winner: int | None = None  # None: as labelled
    other_reference: float = 0.0  # log pi_ref of an answer to another prompt, where the row has one
    undesirable: float = 1.0  # weight of an unsafe answer, where answers are not compared with each other


NO_TERMS = Terms((0.0, 0.0), 1.0, 0.0, 0.0, 0.0, 0.0)


class Size(NamedTuple):
    """Size of all pictures of a row together."""

    patches: int  # N
    placeholders: int  # M


class Room(NamedTuple):
    """The few sizes that the pictures of a batch are padded to: every further one compiles every function once more."""

    sizes: tuple[Size, ...]  # ascending; the last holds every row of the data
    values: int  # C
    merge: int
    ordered: bool  # features go to placeholders in an order of their own
    gridded: bool  # the tower asks for the places of patches
    counted: bool  # pictures differ in their number of patches


def size(layouts: Sequence[Layout]) -> Size:
    """Size of one row's pictures."""
    return Size(sum(layout.patches for layout in layouts), sum(layout.placeholders for layout in layouts))


def room(reader: Reader, rows: Sequence[Encoded], buckets: int) -> Room | None:
    """Room for these rows; None where none has a picture.

    Args:
        buckets: of at most so many sizes: the most patches of a row, half of them, a quarter, ..., each no larger than needed.
    """
    found = [size(row.layouts) for row in rows if row.layouts]
    if not found:
        return None
    most = max(one.patches for one in found)
    below = [[one for one in found if one.patches * 2**halved <= most] for halved in range(buckets)]
    sizes = {Size(*map(max, zip(*some))) for some in below if some}
    first = next(row.layouts[0] for row in rows if row.layouts)
    ordered, gridded = first.order_M is not None, first.grid is not None
    return Room(tuple(sorted(sizes)), reader.values, reader.merge, ordered, gridded, counted=not reader.one_size)


def fitting(room: Room, rows: Sequence[Encoded]) -> Size:
    """The smallest size that holds these rows."""
    wanted = [size(row.layouts) for row in rows]
    return next(one for one in room.sizes if all(row.patches <= one.patches for row in wanted))


class Sequences(NamedTuple):
    """Padded sequences of any leading shape."""

    tokens_BT: Int[np.ndarray, "B T"]
    positions_BT: Int[np.ndarray, "B T *axes"]
    mask_BT: Bool[np.ndarray, "B T"]
    response_mask_BR: Bool[np.ndarray, "B R"]


def sequences(rows: Sequence[Encoded], responses: Sequence[Ids], frame: Frame) -> Sequences:
    """Pad prompts on the left and responses on the right. With R = 0 these are the prompts alone."""
    p_length, r_length = frame.prompt_length, frame.response_length
    tokens_BT = np.full((len(rows), p_length + r_length), frame.pad_id, np.int32)
    positions_BT = np.zeros((*tokens_BT.shape, *rows[0].positions.shape[1:]), np.int32)
    mask_BT = np.zeros(tokens_BT.shape, bool)
    for row, (encoded, response) in enumerate(zip(rows, responses, strict=True)):
        prompt = encoded.prompt
        assert len(prompt) <= p_length and len(response) <= r_length, "tokens.encode drops rows that do not fit"
        real = slice(p_length - len(prompt), p_length + len(response))
        tokens_BT[row, real] = np.concatenate([prompt, response])
        mask_BT[row, real] = True
        positions_BT[row, real.start : p_length] = encoded.positions
        # The response counts on from the largest position, the same on every axis; pads repeat the last.
        following = encoded.positions.max() + 1 + np.minimum(np.arange(r_length), max(len(response) - 1, 0))
        positions_BT[row, p_length:] = following.reshape(-1, *[1] * (positions_BT.ndim - 2))
    return Sequences(tokens_BT, positions_BT, mask_BT, mask_BT[:, p_length:].copy())


def supervised(encoded: Sequence[Encoded], images: Images | None, frame: Frame, *, relabels: bool = False) -> SupervisedBatch:
    """One response per prompt; of a pair, the more helpful one.

    Args:
        relabels: some row of the data has labels of its own, so that every batch has them.
    """
    chosen = [row.responses[supervised_side(row.example)] for row in encoded]
    batch = SupervisedBatch(*sequences(encoded, chosen, frame), images)
    if not relabels:
        return batch
    label_BR, loss_mask_BR = batch.tokens_BT[:, frame.prompt_length :].copy(), batch.response_mask_BR.copy()
    for row, target in enumerate(row.target for row in encoded):
        if target is not None and target.labels is not None:
            label_BR[row, : len(target.labels)] = target.labels
            loss_mask_BR[row, : len(target.labels)] = target.learned
    return batch._replace(label_BR=label_BR, loss_mask_BR=loss_mask_BR)


def pairs(encoded: Sequence[Encoded], images: Images | None, frame: Frame, *, sign: str) -> PairBatch:
    """Both responses and both preferences; `sign` is "label" or "graded"."""
    examples = [row.example for row in encoded]
    return PairBatch(
        *_both_sides(encoded, frame),
        images=images,
        chosen_B=np.asarray([row.chosen or 0 for row in examples], np.int32),
        helpful_weight_B=np.asarray([row.chosen is not None and not row.helpful_tie for row in examples], np.float32),
        safer_B=np.asarray([row.safer or 0 for row in examples], np.int32),
        safety_weight_B=np.asarray([row.safer is not None and not row.safety_tie for row in examples], np.float32),
        sign_BS=np.asarray([signs(row, sign) for row in examples], np.float32).reshape(-1, 2),
    )


def preference(encoded: Sequence[Encoded], images: Images | None, frame: Frame, terms: Sequence[Terms]) -> PreferenceBatch:
    """Both responses and who wins, with the terms of each row."""
    winners = [row.example.chosen or 0 if one.winner is None else one.winner for row, one in zip(encoded, terms, strict=True)]
    flags = [row.example.unsafe or (None, None) for row in encoded]
    return PreferenceBatch(
        *_both_sides(encoded, frame),
        images=images,
        weight_B=np.ones(len(encoded), np.float32),
        winner_B=np.asarray(winners, np.int32),
        unsafe_BS=np.asarray([[0.5 if flag is None else float(flag) for flag in both] for both in flags], np.float32),
        reference_BS=np.asarray([one.reference for one in terms], np.float32),
        scale_B=np.asarray([one.scale for one in terms], np.float32),
        offset_B=np.asarray([one.offset for one in terms], np.float32),
        flip_B=np.asarray([one.flip for one in terms], np.float32),
        target_B=np.asarray([one.target for one in terms], np.float32),
        sft_B=np.asarray([one.sft for one in terms], np.float32),
        keep_BSR=None if encoded[0].kept is None else _kept(encoded, frame),
        unpaired=None if len(encoded[0].responses) == 2 else _unpaired(encoded, frame, terms),
    )


def _kept(encoded: Sequence[Encoded], frame: Frame) -> Bool[np.ndarray, "B 2 R"]:
    """The tokens of both responses that count."""
    keep_BSR = np.zeros((len(encoded), 2, frame.response_length), bool)
    for row, one in enumerate(encoded):
        for side, kept in enumerate(one.kept):
            keep_BSR[row, side, : len(kept)] = kept
    return keep_BSR


def _unpaired(encoded: Sequence[Encoded], frame: Frame, terms: Sequence[Terms]) -> Unpaired:
    """Each prompt with its third response, an answer to another one."""
    return Unpaired(
        SupervisedBatch(*sequences(encoded, [row.responses[2] for row in encoded], frame), None),
        reference_B=np.asarray([one.other_reference for one in terms], np.float32),
        undesirable_B=np.asarray([one.undesirable for one in terms], np.float32),
        baseline_B=np.zeros(len(encoded), np.float32),
    )


def _both_sides(encoded: Sequence[Encoded], frame: Frame) -> Sequences:
    """Sequences [B, 2, ...] of both responses."""
    sides = [sequences(encoded, [row.responses[side] for row in encoded], frame) for side in (0, 1)]
    return Sequences(*(np.stack(arrays, axis=1) for arrays in zip(*sides, strict=True)))


def guard(
    encoded: Sequence[Encoded],
    images: Images | None,
    frame: Frame,
    *,
    labels: Sequence[tuple[guard_rows.Labels, guard_rows.Labels]],
    categories: Sequence[str],
) -> GuardBatch:
    """A question with its answer, or without one."""
    answers = [row.responses[0] if row.responses else np.zeros(0, np.int32) for row in encoded]
    return GuardBatch(*sequences(encoded, answers, frame), images, *guard_rows.arrays(labels, categories))


def prompts(encoded: Sequence[Encoded], images: Images | None, frame: Frame) -> PromptBatch:
    """Prompts to sample from."""
    empty = [np.zeros(0, np.int32)] * len(encoded)
    padded = sequences(encoded, empty, frame._replace(response_length=0))
    row_B = np.asarray([row.row for row in encoded], np.int32)
    return PromptBatch(padded.tokens_BT, padded.positions_BT, padded.mask_BT, images, row_B)


def stack_images(
    encoded: Sequence[Encoded], patches: Sequence[Sequence[Float[np.ndarray, "N C"]]], room: Room, size: Size
) -> Images:
    """The pictures of a batch, those of a row one after the other and padded to `size`; a row without one has zeros."""
    B, N, M = len(encoded), size.patches, size.placeholders
    patches_BNC = np.zeros((B, N, room.values), np.float32)
    order_BM = np.full((B, M), NO_FEATURE, np.int32) if room.ordered else None
    grid_BN2 = np.zeros((B, N, 2), np.int32) if room.gridded else None
    picture_BN = np.zeros((B, N), np.int32) if room.counted else None
    for row, (one, pictures) in enumerate(zip(encoded, patches, strict=True)):
        n, m = 0, 0
        for number, (layout, picture) in enumerate(zip(one.layouts, pictures, strict=True), start=1):
            places = slice(n, n + layout.patches)
            patches_BNC[row, places] = picture
            if room.ordered:
                order_BM[row, m : m + layout.placeholders] = np.where(layout.order_M >= 0, layout.order_M + n, layout.order_M)
            if room.gridded:
                grid_BN2[row, places] = grid_places(layout.grid, room.merge)
            if room.counted:
                picture_BN[row, places] = number
            n, m = n + layout.patches, m + layout.placeholders
    return Images(patches_BNC, order_BM, grid_BN2, picture_BN)


def supervised_side(example: Example) -> int:
    """Index of the response that is learned from.

    Raises:
        Unusable: there is none, or no preference says which.
    """
    if not example.responses:
        raise Unusable("missing_response", "a supervised row needs a response")
    if example.desirable is False:
        raise Unusable("undesirable", "its label says that the answer is not to be learned from")
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
