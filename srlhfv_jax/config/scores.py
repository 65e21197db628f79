"""Settings of `srlhfv scores`, `reward` and `cost`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from srlhfv_jax.config import held_out
from srlhfv_jax.config.ranges import OneOf, Weight
from srlhfv_jax.config.supervised import SupervisedConfig
from srlhfv_jax.config.unread import Unread, of_samples


@dataclass(frozen=True)
class ScoresConfig(SupervisedConfig):
    """`srlhfv scores`, `reward` and `cost`: score heads on one backbone from dual preferences."""

    stage: ClassVar[str] = "scores"
    heads: tuple[Annotated[str, OneOf("reward", "cost")], ...]  # both, or one of them
    sign: Annotated[str, OneOf("label", "graded")]  # +-1 from the safety label, or -harmless_rate
    sign_weight: Weight  # kappa of the sign terms
    score_l2: Weight  # rho
    keep_best: Annotated[str, OneOf("", *held_out.PAIRS)]  # the step that is exported: the best of those evaluated; "" = the last

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        yield from super().unread()
        yield from of_samples()
        yield Unread("data.train_on", "it is about rows to imitate, and here answers are scored", "last")
        yield Unread("model.logp_chunk", "no logits are made for scores", 0)
        yield from held_out.unread(bool(self.evaluation), self.evaluation_every, self.keep_best)
        if "cost" not in self.heads:
            yield from (Unread(name, "it is of the cost head, and config.heads has none") for name in ("sign", "sign_weight"))
