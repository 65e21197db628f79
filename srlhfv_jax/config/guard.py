"""Settings of `srlhfv guard`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from srlhfv_jax.config import held_out
from srlhfv_jax.config.ranges import OneOf, Range, Rows, Weight
from srlhfv_jax.config.supervised import SupervisedConfig
from srlhfv_jax.config.unread import Unread, of_samples

PAIRS = ("split", "batch_size", "coef", "sign", "sign_weight", "score_l2", "evaluation_split")  # without config.pairs.path


@dataclass(frozen=True)
class PairsConfig:
    """Reward and cost heads trained beside a guard, on its backbone."""

    path: str  # dual preferences, read with the settings of `data` but for its split; "" = no such heads
    split: str  # as data.split, like that of the evaluation
    batch_size: Rows  # pairs of a step
    coef: Weight  # of their loss beside the guard's
    sign: Annotated[str, OneOf("label", "graded")]  # as in ScoresConfig, like all that follows
    sign_weight: Weight  # kappa of the sign terms
    score_l2: Weight  # rho
    evaluation: str  # path of held-out pairs
    evaluation_split: str  # as data.split


@dataclass(frozen=True)
class GuardConfig(SupervisedConfig):
    """`srlhfv guard`: severity and harm categories of questions and of answers."""

    stage: ClassVar[str] = "guard"
    taxonomy: str  # of data/taxonomies.py: what the rows are labelled with
    parts: tuple[Annotated[str, OneOf("input", "output")], ...]  # judge questions, answers, or both
    category_weight: Weight  # of the category loss beside the severity loss
    balance: bool  # rare classes weigh more while training; probabilities are those of the data again afterwards
    false_positive_rate: Annotated[float, Range(0, 0.999999)]  # at most this share of safe calibration rows is called unsafe
    # "each" part by its own calibration rows, or "one" for all parts, by all rows: steadier where rows are few
    thresholds: Annotated[str, OneOf("each", "one")]
    # path of other held-out rows, which set the thresholds, at every evaluation again; "" = all at 0.5
    calibration: str
    calibration_split: str  # as data.split
    keep_best: Annotated[str, OneOf("", *held_out.GUARD)]  # the step that is exported: the best of those evaluated; "" = the last
    pairs: PairsConfig

    @property
    def held_out(self) -> tuple[str, ...]:
        """Paths and splits of the rows that evaluations are of."""
        return (self.evaluation, self.evaluation_split, self.pairs.evaluation, self.pairs.evaluation_split)

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        yield from super().unread()
        yield from of_samples()
        yield Unread("data.train_on", "it is about rows to imitate, and here answers are judged", "last")
        yield Unread("model.logp_chunk", "no logits are made for a guard", 0)
        if not self.calibration:
            for name in ("false_positive_rate", "thresholds", "calibration_split"):
                yield Unread(name, "thresholds are set on the rows of config.calibration, and there are none")
        yield from held_out.unread(bool(self.evaluation or self.pairs.evaluation), self.evaluation_every, self.keep_best)
        if not self.pairs.path:
            why = "no score heads are trained while config.pairs.path is empty"
            yield Unread("pairs.evaluation", why, "")
            yield from (Unread(f"pairs.{name}", why) for name in PAIRS)
