"""Whole-sequence forward passes on `[prompt | response]` layouts: log-probabilities of responses, and score-head outputs.

Rollout scoring, the PPO update, SFT and training on pairs all read the model through these functions, so there is one place
where position T meets time t: the hidden state at position P + t - 1 has seen the tokens before response token t, and predicts
it. Two responses to one prompt share a sequence, [first backwards | prompt | second], where a model allows it.
"""

from typing import Protocol

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from srlhfv_jax.batches import Features, Images, SupervisedBatch
from srlhfv_jax.losses import logprob
from srlhfv_jax.models import attention, score_heads, vlm
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.measure import Taps
from srlhfv_jax.models.vlm import Prefix

Context = Features | Prefix | None  # of the prompt: its images' features, or all that `prefix` made of it; None: it is text alone


class Sequences(Protocol):
    """Sequences that these functions read: a SupervisedBatch, a Rollout, one side of a PairBatch."""

    tokens_BT: Int[Array, "B T"]
    positions_BT: Int[Array, "B T *axes"]
    mask_BT: Bool[Array, "B T"]
    response_mask_BR: Bool[Array, "B R"]


class Pairs(Protocol):
    """Prompts with two responses each, as these functions read them: a PairBatch."""

    tokens_BST: Int[Array, "B 2 T"]
    positions_BST: Int[Array, "B 2 T *axes"]
    mask_BST: Bool[Array, "B 2 T"]
    response_mask_BSR: Bool[Array, "B 2 R"]


def response_logp(
    config: VLMConfig,
    tree,
    sequences: Sequences,
    context: Context,
    *,
    temperature: float = 1.0,
    never_V=None,
    label_BR: Int[Array, "B R"] | None = None,
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Log-probability of each response token, or of other labels in their places, and the entropy of its distribution; float32, 0 off
    the response mask."""
    mask_BR = sequences.response_mask_BR
    hidden_BRD, tokens_BR = response_hidden(config, tree, sequences, context), sequences.tokens_BT[:, -mask_BR.shape[1] :]
    return _logp(config, tree, hidden_BRD, tokens_BR if label_BR is None else label_BR, mask_BR, temperature, never_V)


def _logp(
    config: VLMConfig, tree, hidden_BRD, tokens_BR, mask_BR, temperature: float = 1.0, never_V=None
) -> tuple[Float[Array, "B R"], Float[Array, "B R"]]:
    """Log-probability of each token by the hidden state before it, and the entropy there; 0 off the mask."""
    logp_BR, entropy_BR = logprob.chosen_logp(
        hidden_BRD,
        vlm.unembedding(config, tree["backbone"]),
        tokens_BR,
        temperature=temperature,
        never_V=jnp.zeros(config.text.vocab, bool) if never_V is None else never_V,
        chunk=config.logp_chunk,
    )
    return jnp.where(mask_BR, logp_BR, 0.0), jnp.where(mask_BR, entropy_BR, 0.0)


def response_scores(config: VLMConfig, tree, sequences: Sequences, context: Context) -> dict[str, Float[Array, "B R+1"]]:
    """Every head of `tree` in one forward pass: scores_BR1[:, t] is read before response token t, [:, t + 1] after it.

    So `[:, :-1]` are values by the time convention, and the end score is read from `[:, 1:]` at the last true position. float32.
    """
    return score_heads.scores(tree["heads"], _hidden(config, tree, sequences, context))


def response_hidden(config: VLMConfig, tree, sequences: Sequences, context: Context) -> Float[Array, "B R D"]:
    """The hidden states that heads read before each response token."""
    return _hidden(config, tree, sequences, context)[:, :-1]


def prefix(config: VLMConfig, tree, sequences: Sequences, features: Features | None) -> Prefix:
    """The prompts as the backbone under activated adapters reads them. It serves every tree over this backbone."""
    end = _activated_from(config, sequences)
    asked = (x_BT[:, :end] for x_BT in (sequences.tokens_BT, sequences.positions_BT, sequences.mask_BT))
    return vlm.prefix(config, tree["backbone"], *asked, features)


def _activated_from(config: VLMConfig, sequences: Sequences) -> int:
    """The position from which on activated adapters act: the same in all rows, for prompts end at one place, with these tokens."""
    return sequences.tokens_BT.shape[1] - sequences.response_mask_BR.shape[1] - len(config.activation)


def _hidden(
    config: VLMConfig, tree, sequences: Sequences, context: Context, read: attention.Read | None = None
) -> Float[Array, "B Q D"]:
    """Hidden states at the positions `read`; None: at the last prompt token and at every response position."""
    s = sequences
    read = s.response_mask_BR.shape[1] + 1 if read is None else read
    if not config.activation:
        return vlm.apply(config, tree["backbone"], s.tokens_BT, s.positions_BT, s.mask_BT, context, read=read)[0]
    before = context if isinstance(context, Prefix) else prefix(config, tree, s, context)
    start = _activated_from(config, s)
    own = (x_BT[:, start:] for x_BT in (s.tokens_BT, s.positions_BT, s.mask_BT))
    read = read if isinstance(read, int) else read - start
    return vlm.apply(config, tree["backbone"], *own, before=before, read=read)[0]


def end_scores(config: VLMConfig, tree, sequences: Sequences, context: Context) -> dict[str, Float[Array, "B"]]:
    """Each head's score of the whole response, read after its last token."""
    hidden_BD = _hidden(config, tree, sequences, context, _ends(sequences)[:, 1:])[:, 0]
    return score_heads.scores(tree["heads"], hidden_BD)


def end_hidden(config: VLMConfig, tree, sequences: Sequences, context: Context) -> Float[Array, "B 2 D"]:
    """The hidden states at the last token of the prompt and at that of the response, which are one where there is no response."""
    return _hidden(config, tree, sequences, context, _ends(sequences))


def end_activations(config: VLMConfig, tree, batch: Pairs, features: Features | None, site: str) -> Float[Array, "L B 2 H h"]:
    """Activations of every layer where both responses have been said, at the last token before the end; float32.

    Args:
        site: "heads": inputs of the attention's output projection; "layer": the residual stream after each layer, as one head.
    """
    rows, context = _rows(config, tree, batch, features)
    said_B111 = _ends(rows)[:, 1:, None, None] - 1

    def ends(taps: Taps) -> Float[Array, "B H h"]:
        values_BTHh = taps.x_BTD[:, :, None] if site == "layer" else taps.heads_BTHh
        return jnp.take_along_axis(values_BTHh, said_B111, axis=1)[:, 0].astype(jnp.float32)

    given = (rows.tokens_BT, rows.positions_BT, rows.mask_BT, context)
    _, found_LBHh = vlm.measure(config, tree["backbone"], *given, ends)
    return einops.rearrange(found_LBHh, "L (B S) H h -> L B S H h", S=2)


def _ends(sequences: Sequences) -> Int[Array, "B 2"]:
    """Ends of the prompt and of the response, which begins right behind it."""
    prompt = sequences.tokens_BT.shape[1] - sequences.response_mask_BR.shape[1] - 1
    lengths_B = jnp.sum(sequences.response_mask_BR, axis=1, dtype=jnp.int32)
    return prompt + jnp.stack([jnp.zeros_like(lengths_B), lengths_B], axis=1)


def encode(config: VLMConfig, tree, images: Images | None) -> Features | None:
    """Vision-tower features of a batch, or None for a text-only model."""
    return None if images is None else vlm.encode_images(config, tree["backbone"], images)


def pair_scores(config: VLMConfig, tree, batch: Pairs, features: Features | None) -> dict[str, Float[Array, "B 2"]]:
    """Each head's score of both responses, read after their last tokens."""
    return (scores_apart if _apart(config) else scores_together)(config, tree, batch, features)


def pair_token_scores(config: VLMConfig, tree, batch: Pairs, features: Features | None) -> dict[str, Float[Array, "B 2 R"]]:
    """Each head's score of both responses, read after each of their tokens; anything off the response mask."""
    scores = response_scores(config, tree, *_rows(config, tree, batch, features))
    return {name: score_BR1[:, 1:].reshape(batch.response_mask_BSR.shape) for name, score_BR1 in scores.items()}


def pair_logp(config: VLMConfig, tree, batch: Pairs, features: Features | None) -> Float[Array, "B 2 R"]:
    """Log-probability of each token of both responses, at temperature 1; float32, 0 off the response mask."""
    return (logp_apart if _apart(config) else logp_together)(config, tree, batch, features)


def _apart(config: VLMConfig) -> bool:
    """Whether each response needs a sequence of its own: with local layers, and where adapters begin to act behind the prompt."""
    return bool(config.text.local_layers or config.activation)


def scores_together(config: VLMConfig, tree, batch: Pairs, features: Features | None) -> dict[str, Float[Array, "B 2"]]:
    """`pair_scores` with both responses in one sequence."""
    R, prompt_end = batch.response_mask_BSR.shape[2], batch.tokens_BST.shape[2] - 1
    lengths_BS = jnp.sum(batch.response_mask_BSR, axis=2, dtype=jnp.int32)
    ends_BS = jnp.stack([R - lengths_BS[:, 0], prompt_end + lengths_BS[:, 1]], axis=1)
    return score_heads.scores(tree["heads"], _hidden_of_both(config, tree, batch, features, ends_BS))


def scores_apart(config: VLMConfig, tree, batch: Pairs, features: Features | None) -> dict[str, Float[Array, "B 2"]]:
    """`pair_scores` with each response in a sequence of its own."""
    ends = end_scores(config, tree, *_rows(config, tree, batch, features))
    return {name: end_B.reshape(-1, 2) for name, end_B in ends.items()}


def logp_together(config: VLMConfig, tree, batch: Pairs, features: Features | None) -> Float[Array, "B 2 R"]:
    """`pair_logp` with both responses in one sequence.

    Token t of the first lies at R - 1 - t, token t of the second at R + P + t. Each is predicted where the token before it lies,
    the first of both at the prompt's last position.
    """
    mask_BSR = batch.response_mask_BSR
    B, _, R = mask_BSR.shape
    prompt_end, time_R = batch.tokens_BST.shape[2] - 1, jnp.arange(R, dtype=jnp.int32)
    before_first_R, before_second_R = jnp.where(time_R == 0, prompt_end, R - time_R), prompt_end + time_R
    read_BQ = jnp.broadcast_to(jnp.concatenate([before_first_R, before_second_R])[None], (B, 2 * R))
    hidden_BQD = _hidden_of_both(config, tree, batch, features, read_BQ)
    tokens_BQ, mask_BQ = (einops.rearrange(x_BSR, "B S R -> B (S R)") for x_BSR in (batch.tokens_BST[:, :, -R:], mask_BSR))
    logp_BQ, _ = _logp(config, tree, hidden_BQD, tokens_BQ, mask_BQ)
    return logp_BQ.reshape(mask_BSR.shape)


def logp_apart(config: VLMConfig, tree, batch: Pairs, features: Features | None) -> Float[Array, "B 2 R"]:
    """`pair_logp` with each response in a sequence of its own."""
    logp_BR, _ = response_logp(config, tree, *_rows(config, tree, batch, features))
    return logp_BR.reshape(batch.response_mask_BSR.shape)


def _hidden_of_both(
    config: VLMConfig, tree, batch: Pairs, features: Features | None, read_BQ: Int[Array, "B Q"]
) -> Float[Array, "B Q D"]:
    """Hidden states of [first backwards | prompt | second]: a prompt and its image pass once. Not with local layers."""
    R = batch.response_mask_BSR.shape[2]
    sequence = (
        jnp.concatenate([x_BST[:, 0, : -R - 1 : -1], x_BST[:, 1]], axis=1)
        for x_BST in (batch.tokens_BST, batch.positions_BST, batch.mask_BST)
    )
    return vlm.apply(config, tree["backbone"], *sequence, features, read=read_BQ, backwards=R)[0]


def _rows(config: VLMConfig, tree, batch: Pairs, features: Features | None) -> tuple[SupervisedBatch, Context]:
    """Each response in a sequence of its own, rows 2b and 2b + 1 of one batch; the image is encoded once, as is, where adapters
    are activated, the prompt."""
    rows = SupervisedBatch(
        tokens_BT=einops.rearrange(batch.tokens_BST, "B S T -> (B S) T"),
        positions_BT=einops.rearrange(batch.positions_BST, "B S ... -> (B S) ..."),
        mask_BT=einops.rearrange(batch.mask_BST, "B S T -> (B S) T"),
        response_mask_BR=einops.rearrange(batch.response_mask_BSR, "B S R -> (B S) R"),
        images=None,
    )
    context: Context = features
    if config.activation:
        context = prefix(config, tree, jax.tree.map(lambda x_B: x_B[::2], rows), features)
    return rows, jax.tree.map(lambda x_B: jnp.repeat(x_B, 2, axis=0), context)
