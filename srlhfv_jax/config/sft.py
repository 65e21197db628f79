"""Settings of `srlhfv sft`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from srlhfv_jax.config import held_out
from srlhfv_jax.config.ranges import OneOf
from srlhfv_jax.config.supervised import SupervisedConfig
from srlhfv_jax.config.unread import Unread


@dataclass(frozen=True)
class SFTConfig(SupervisedConfig):
    """`srlhfv sft`."""

    stage: ClassVar[str] = "sft"
    init_random: bool  # keep only the shapes and the tokenizer of `init`, start from random weights
    keep_best: Annotated[str, OneOf("", *held_out.SFT)]  # the step that is exported: the best of those evaluated; "" = the last

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        yield from super().unread()
        yield from held_out.unread(bool(self.evaluation), self.evaluation_every, self.keep_best)
        if self.log.samples_every == 0:
            yield Unread("log.samples", "config.log.samples_every is 0")
            yield Unread("log.guard", "config.log.samples_every is 0", "")
