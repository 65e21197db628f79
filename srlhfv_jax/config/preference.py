"""Settings of `srlhfv preference`: losses on pairs, without a rollout."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from srlhfv_jax.config import held_out
from srlhfv_jax.config.ranges import Number, OneOf, Positive, Share, Weight
from srlhfv_jax.config.supervised import SupervisedConfig
from srlhfv_jax.config.unread import Unread, of_samples
from srlhfv_jax.errors import UserError

NO_REFERENCE = "none"
NEEDED = "needed"  # a preset's value of a path that its method is nothing without


@dataclass(frozen=True)
class TargetConfig:
    """Target of h: (safe_winner s_w - safe_loser s_l + constant) / beta, with s = 1 for a safe answer and 0 for an unsafe one."""

    safe_winner: Number
    safe_loser: Number
    constant: Number


@dataclass(frozen=True)
class ReplayConfig:
    """Pairs of harmless questions beside, as many in every step: h goes towards a target as if all their answers were safe (BFPO)."""

    path: str  # of these pairs; "" = none
    split: str  # as data.split


@dataclass(frozen=True)
class MarginConfig:
    """A second objective, as the margin by which a policy that was trained for it tells the two answers apart (MODPO)."""

    path: str  # that policy: its workdir or export; "" = none
    reference: str  # its own reference; "" = config.reference, or config.init
    weight: Share  # of the margin; the main objective has 1 - weight


@dataclass(frozen=True)
class PairScoresConfig:
    """Scores that say who wins, of axis "scores": helpfulness - multiplier * harm, by a scorer's heads or by two policies."""

    scorer: str  # workdir of `srlhfv scores`, with both heads; "" = two policies
    helpful: str  # a policy trained to be helpful, read as log pi / pi_ref
    harmless: str  # one trained to be harmless
    multiplier: Weight  # lambda, such as `srlhfv dual` prints


@dataclass(frozen=True)
class TokensConfig:
    """Tokens that count: the winner's of a value above the baseline, the loser's of one below it (Equilibrate)."""

    scorer: str  # workdir of `srlhfv scores`, whose head is read after every token; "" = all tokens count
    head: Annotated[str, OneOf("reward", "cost")]  # the value is the reward, or minus the cost
    baseline: Number  # b


@dataclass(frozen=True)
class PreferenceConfig(SupervisedConfig):
    """`srlhfv preference`: a policy from pairs of which one answer wins."""

    stage: ClassVar[str] = "preference"
    axis: Annotated[
        str, OneOf("helpful", "safer", "scores", "each")
    ]  # who wins: by labels, or by `scores`; "each": nobody, each answer is safe or unsafe ("kto")
    transform: Annotated[
        str, OneOf("none", "safe_winner", "safedpo")
    ]  # pairs whose winner is unsafe: kept, left out, turned round
    loss: Annotated[
        str, OneOf("logistic", "square", "unlearn", "kto")
    ]  # of h; of the likelihood of both answers; of each answer's log-ratio
    reference: str  # the policy that h is measured from: a checkpoint; "" = config.init; "none" = h is of log-likelihoods
    reference_cache: str  # folder of its log-probabilities, which several runs may share; "" = WORKDIR/reference
    mean: bool  # log-probabilities per token instead of sums over an answer
    beta: Positive  # scale of h
    flip: Share  # probability that a label is the wrong way round; of axis "scores" the scores say it
    offset: Number  # what beta * h has to exceed
    unsafe_offset: Weight  # more of it where the loser alone is unsafe, less where the winner alone is
    target: TargetConfig  # of "square"
    margin: MarginConfig
    blind: str  # file of answers without the picture, which lose to the winner too: `srlhfv generate --picture=blank`; "" = none
    replay: ReplayConfig
    scores: PairScoresConfig
    sft_coef: Weight  # of -log pi of the winner, per token, beside the loss
    keep_coef: Weight  # of "unlearn": of the likelihood that the winner gains
    forget_coef: Number  # of "unlearn": of the likelihood that the other answer loses; below 0 it gains
    forget_cap: Positive  # of "unlearn": nats per token, at which the other answer is forgotten
    undesirable_weight: Weight  # of "kto": of an unsafe answer, where a safe one has 1; 0 = number of safe ones / of unsafe ones
    tokens: TokensConfig
    keep_best: Annotated[
        str, OneOf("", *held_out.PREFERENCE)
    ]  # the step that is exported: the best of those evaluated; "" = the last

    @property
    def has_reference(self) -> bool:
        """Whether h is measured from a policy."""
        return self.reference != NO_REFERENCE

    @property
    def reference_path(self) -> str:
        """Checkpoint of that policy."""
        return self.init if self.reference in ("", NO_REFERENCE) else self.reference

    @property
    def from_reference(self) -> bool:
        """Whether training starts from it."""
        return self.has_reference and self.reference_path == self.init

    @property
    def reads_flags(self) -> bool:
        """Whether the loss needs to know of both answers whether they are safe."""
        square = self.loss == "square" and bool(self.target.safe_winner or self.target.safe_loser)
        return square or (self.loss == "logistic" and self.unsafe_offset > 0)

    def check(self) -> None:
        """Raise UserError for settings that contradict each other."""
        if not self.has_reference and self.loss == "logistic" and self.margin.path:
            raise UserError(
                "config.margin is measured against references: set config.reference, or leave config.margin.path empty"
            )
        if self.loss == "logistic" and self.mean and self.has_reference:
            raise UserError(
                f"config.mean with loss 'logistic' is SimPO, which has no reference: set config.reference='none', got {self.reference!r}, or "
                "config.mean=False"
            )
        if self.margin.path and self.margin.weight >= 1:
            raise UserError(f"config.margin.weight must be below 1, the rest is the main objective's, got {self.margin.weight}")
        if (self.loss == "kto") != (self.axis == "each"):
            raise UserError(
                f"config.axis 'each' and config.loss 'kto' go together: got axis {self.axis!r} and loss {self.loss!r} (--config=configs/preference.py:kto)"
            )
        if self.loss == "kto" and not self.has_reference:
            raise UserError(
                "config.loss is 'kto', whose log-ratios are measured from a reference: config.reference must not be 'none'"
            )
        if self.tokens.scorer and self.margin.path:
            raise UserError("config.margin is of whole answers: leave config.margin.path or config.tokens.scorer empty")
        if self.loss == "unlearn" and not (self.keep_coef or self.forget_coef):
            raise UserError("config.keep_coef and config.forget_coef are both 0: nothing is left to learn, set one")
        if self.axis != "scores":
            return
        scores = self.scores
        if bool(scores.scorer) == bool(scores.helpful or scores.harmless):
            raise UserError(
                "config.axis is 'scores': give config.scores.scorer (a workdir of srlhfv scores), or config.scores.helpful and .harmless (two "
                f"policies), got scorer={scores.scorer!r}, helpful={scores.helpful!r}, harmless={scores.harmless!r}"
            )
        if not scores.scorer and not (scores.helpful and scores.harmless):
            raise UserError("config.scores needs both policies: give config.scores.helpful and config.scores.harmless")
        if not scores.scorer and not self.has_reference:
            raise UserError("config.scores of two policies are measured from a reference: config.reference must not be 'none'")

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        yield from super().unread()
        yield from of_samples()
        yield Unread("data.train_on", "it is about rows to imitate, and here two answers are compared", "last")
        yield from held_out.unread(bool(self.evaluation), self.evaluation_every, self.keep_best)
        if self.axis != "scores":
            yield Unread("scores", "config.axis is not 'scores'")
        else:
            yield Unread("flip", "config.axis is 'scores': they say how sure the label is", 0.0)
            yield Unread("transform", "config.axis is 'scores': they know of harm", "none")
        if self.loss != "square":
            yield Unread("target", "config.loss is not 'square'")
        if self.loss != "logistic":
            for name, off in (("flip", 0.0), ("offset", 0.0), ("unsafe_offset", 0.0), ("margin.path", "")):
                yield Unread(name, "config.loss is not 'logistic'", off)
        if self.loss != "kto":
            yield Unread("undesirable_weight", "config.loss is not 'kto'", 0.0)
        else:
            why = "config.loss is 'kto', which compares no two answers"
            for name, off in (("transform", "none"), ("mean", False), ("sft_coef", 0.0), ("blind", ""), ("tokens.scorer", "")):
                yield Unread(name, why, off)
        if self.loss == "unlearn":
            yield Unread("tokens.scorer", "config.loss is 'unlearn', which learns whole answers", "")
        if not self.tokens.scorer:
            yield Unread("tokens", "config.tokens.scorer is empty")
        if not self.replay.path:
            yield Unread("replay", "config.replay.path is empty")
        if self.loss != "square":
            yield Unread("replay.path", "config.loss is not 'square'", "")
        if not self.margin.path:
            yield Unread("margin", "config.margin.path is empty")
        if self.loss != "unlearn":
            for name in ("keep_coef", "forget_coef", "forget_cap"):
                yield Unread(name, "config.loss is not 'unlearn'")
        else:
            if self.forget_coef <= 0:
                yield Unread("forget_cap", "config.forget_coef is not above 0")
            yield Unread("reference", "config.loss is 'unlearn', which compares with nothing", NO_REFERENCE)
            yield Unread("sft_coef", "config.loss is 'unlearn', which has that term", 0.0)
        if not self.has_reference:
            yield Unread("reference_cache", "config.reference is 'none'", "")
