"""The arrays that travel between data, rollout, scoring and the losses: one NamedTuple per kind of batch.

Every sequence has the layout `[prompt, left-padded to P | response, right-padded to R]`, T = P + R. Image placeholders sit in the
prompt, one token per image feature. Masks and positions are made once, where padding is made, and carried from there; nothing
downstream rebuilds them from token values (a tokenizer's pad may equal its eos).

Positions have a last axis of 3 (time, row, column) for families with M-RoPE and no such axis for all others.

Time: `*_BR[:, t]` belongs to response token t. `logp_BR[:, t]` is the log-probability of that token, `value_BR[:, t]` is
predicted before it is seen, `response_mask_BR[:, t]` is true for real tokens including the first end-of-sequence token.

`images` and `features` are None for a text-only model. A row without an image in a batch that has images carries zeros; it has no
placeholders, so the zeros are never read.
"""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

NEWLINE, NO_FEATURE = -1, -2  # in Images.order_BM: the learned end of a line, and past the last placeholder of a row


class Images(NamedTuple):
    """The pictures of a batch as flattened patches, all rows with room for the most that any row of the data has.

    A field is None where the model family has no use for it.
    """

    patches_BNC: Float[Array, "B N C"]  # values of a patch in the order of the tower's patch kernel: channel, (frame,) y, x
    order_BM: Int[Array, "B M"] | None  # the feature of the k-th placeholder, NEWLINE or NO_FEATURE; None: the k-th feature
    grid_BN2: Int[Array, "B N 2"] | None  # row and column of each patch in its picture
    picture_BN: Int[Array, "B N"] | None  # which picture of its row a patch is of: 1, 2, ...; 0: none, the patch is padding


class Features(NamedTuple):
    """Outputs of a vision tower for a batch's pictures, before the projector; computed once and read by every role."""

    tower_BNE: Float[Array, "B N E"]
    order_BM: Int[Array, "B M"] | None  # as in Images


class SupervisedBatch(NamedTuple):
    """Prompts with one response each, for SFT and the PTX term.

    The last two are there where a stage teaches something else than the response (data/targets.py): what each of its positions has to
    predict, and where that counts, a part of the response mask.
    """

    tokens_BT: Int[Array, "B T"]
    positions_BT: Int[Array, "B T *axes"]  # 0 at the first real token; pads repeat 0 on the left, the last position on the right
    mask_BT: Bool[Array, "B T"]  # true at real tokens, prompt and response
    response_mask_BR: Bool[Array, "B R"]
    images: Images | None
    label_BR: Int[Array, "B R"] | None = None  # None: the tokens of the response
    loss_mask_BR: Bool[Array, "B R"] | None = None  # None: the response mask


class PairBatch(NamedTuple):
    """Prompts with two responses each and both preferences, for the reward and cost heads.

    A weight of 0 means: this preference is absent or a tie, the row takes no part in that loss term.
    """

    tokens_BST: Int[Array, "B 2 T"]
    positions_BST: Int[Array, "B 2 T *axes"]
    mask_BST: Bool[Array, "B 2 T"]
    response_mask_BSR: Bool[Array, "B 2 R"]
    images: Images | None  # both sides share it
    chosen_B: Int[Array, "B"]  # side (0 or 1) of the more helpful response
    helpful_weight_B: Float[Array, "B"]
    safer_B: Int[Array, "B"]  # side (0 or 1) of the safer response
    safety_weight_B: Float[Array, "B"]
    sign_BS: Float[Array, "B 2"]  # cost > 0 means unsafe: +1 unsafe, -1 safe; or graded, -harmless_rate; 0 = not labelled


class Unpaired(NamedTuple):
    """Beside a PreferenceBatch whose answers are each compared with answers to other prompts, and not with each other (KTO)."""

    sequences: SupervisedBatch  # its prompts, each with an answer to another one; its pictures are those of the batch
    reference_B: Float[Array, "B"]  # log pi_ref of these answers
    undesirable_B: Float[Array, "B"]  # weight of an unsafe answer; a safe one has 1
    baseline_B: Float[Array, "B"]  # the mean log-ratio of these answers over the whole batch, in all rows: a step begins with it


class PreferenceBatch(NamedTuple):
    """Pairs of which one side wins, for losses on h = [log pi(y_w) - log pi_ref(y_w)] - [log pi(y_l) - log pi_ref(y_l)].

    What differs between methods is in these arrays, so that a step that is compiled once serves them all.
    """

    tokens_BST: Int[Array, "B 2 T"]
    positions_BST: Int[Array, "B 2 T *axes"]
    mask_BST: Bool[Array, "B 2 T"]
    response_mask_BSR: Bool[Array, "B 2 R"]
    images: Images | None  # both sides share it
    weight_B: Float[Array, "B"]  # 0: a row that fills up a batch
    winner_B: Int[Array, "B"]  # side (0 or 1)
    unsafe_BS: Float[Array, "B 2"]  # 1 unsafe, 0 safe, 0.5 not labelled
    reference_BS: Float[Array, "B 2"]  # log pi_ref of each answer, a sum over its tokens; 0 without a reference
    scale_B: Float[Array, "B"]  # of h: beta
    offset_B: Float[Array, "B"]  # what scale * h has to exceed
    flip_B: Float[Array, "B"]  # probability that the other side wins
    target_B: Float[Array, "B"]  # of h, where it is fitted to one
    sft_B: Float[Array, "B"]  # weight of -log pi(y_w) beside the loss, per token

    keep_BSR: Bool[Array, "B 2 R"] | None = None  # tokens whose log-probabilities count, a part of the response mask; None: all
    unpaired: Unpaired | None = None  # None: answers are compared with each other


class GuardBatch(NamedTuple):
    """Questions, some with an answer, and what is known of the harm of both. Q = 2: of the question, then of the answer.

    One sequence serves both: a question is read at the last token of the prompt, which has seen nothing of the answer. Without an
    answer the response mask is false throughout.
    """

    tokens_BT: Int[Array, "B T"]
    positions_BT: Int[Array, "B T *axes"]
    mask_BT: Bool[Array, "B T"]
    response_mask_BR: Bool[Array, "B R"]
    images: Images | None
    exceeds_BQJ: Bool[Array, "B 2 J"]  # severity > safe, > minor, > moderate
    exceeds_known_BQJ: Bool[Array, "B 2 J"]
    category_BQA: Bool[Array, "B 2 A"]
    category_known_BQA: Bool[Array, "B 2 A"]


class PromptBatch(NamedTuple):
    """Prompts to sample from. `row_B` is the row's index in its source, so that answers find their question again."""

    tokens_BP: Int[Array, "B P"]
    positions_BP: Int[Array, "B P *axes"]
    mask_BP: Bool[Array, "B P"]
    images: Images | None
    row_B: Int[Array, "B"]


class Rollout(NamedTuple):
    """Prompts with sampled responses, and what the sampler knew."""

    tokens_BT: Int[Array, "B T"]
    positions_BT: Int[Array, "B T *axes"]
    mask_BT: Bool[Array, "B T"]
    response_mask_BR: Bool[Array, "B R"]
    logp_BR: Float[
        Array, "B R"
    ]  # behaviour log-probabilities at the rollout temperature, never-sampled ids at -inf; 0 off the mask
    ended_B: Bool[Array, "B"]  # an end-of-sequence token was sampled (false: cut at R)
    features: Features | None
    begun_B: Int[Array, "B"] | None = None  # step of the loop over tokens that drew the row's first; None: 0


class Stream(NamedTuple):
    """Values, advantages and returns of one critic (GAE), of rewards or of costs. float32, 0 off the response mask."""

    value_BR: Float[Array, "B R"]
    adv_BR: Float[Array, "B R"]
    return_BR: Float[Array, "B R"]


class GroupAdvantages(NamedTuple):
    """Advantages of answers beside the others to their prompts, one for all tokens of an answer. float32."""

    reward_B: Float[Array, "B"]
    costs_B: dict[str, Float[Array, "B"]]  # by constraint
    kl_B: Float[Array, "B"]  # of the KL, in nats, never divided by a deviation


class Experience(NamedTuple):
    """A scored rollout: everything the PPO-Lagrangian update reads. All float32; [B, R] arrays are 0 off the mask."""

    rollout: Rollout
    ref_logp_BR: Float[Array, "B R"]
    reward_B: Float[Array, "B"]  # end score of the reward head (raw)
    costs_B: dict[str, Float[Array, "B"]]  # constraint -> end scores (raw; > 0 means unsafe), 0 where it is not about a row
    token_BR: dict[
        str, Float[Array, "B R"]
    ]  # critic role -> what it predicts the sum of: rewards, or costs, of each token; {} without
    streams: dict[str, Stream] | None  # critic role -> its stream; None: the update computes the values, and only once
    weight_BR: Float[Array, "B R"] | None  # of each token in the policy's loss: trainer against sampler; None: 1
    groups: GroupAdvantages | None  # None with critics
    applies_B: dict[str, Bool[Array, "B"]]  # constraint -> the rows that it is about; without those that are about all
    terms_B: dict[str, Float[Array, "B"]]  # "cost.model" -> that head's own score, of scores that have several terms
