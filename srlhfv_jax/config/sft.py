"""Settings of `srlhfv sft`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from srlhfv_jax.config import held_out
from srlhfv_jax.config.ranges import OneOf, Range, Share
from srlhfv_jax.config.supervised import SupervisedConfig
from srlhfv_jax.config.unread import Unread, of_units
from srlhfv_jax.errors import UserError, shown


@dataclass(frozen=True)
class TargetsConfig:
    """Lessons of rows: their answers, or what makes a policy safer without a new loss (data/targets.py)."""

    kind: Annotated[str, OneOf("plain", "benign_refusal", "derta", "rewrite")]  # "plain": the answer of a row
    share: Share  # of "benign_refusal": of the rows without harm, whose answer becomes a refusal
    refusals: tuple[str, ...]  # of "benign_refusal": sentences, one of which it becomes
    prefix: bool  # of "derta": rows of an unsafe answer that is cut and goes on as the safe one
    rto: bool  # of "derta": rows of an unsafe answer where every token is to be the refusal
    refusal: str  # of "derta": the refusal's first word, which must be one token
    positions: Annotated[float, Range(0, 1, above=True)]  # of "derta": share of an unsafe answer's tokens that have this label
    template: str  # of "rewrite": a question with {question} and the unsafe {answer} in it

    @property
    def relabels(self) -> bool:
        """Whether rows have labels that are not their tokens, or loss on a part of them."""
        return self.kind == "derta"

    @property
    def pairs(self) -> bool:
        """Whether it learns from pairs of a safe and an unsafe answer."""
        return self.kind in ("derta", "rewrite")

    def check(self) -> None:
        """Raise UserError where a kind lacks what it needs."""
        if self.kind == "benign_refusal" and not self.refusals:
            raise UserError("config.targets.refusals is empty: give at least one sentence that answers become")
        if self.kind == "derta" and not (self.prefix or self.rto):
            raise UserError(
                "config.targets.prefix and config.targets.rto are both off: no row is left to learn from, turn one on"
            )
        missing = [name for name in ("{question}", "{answer}") if name not in self.template]
        if self.kind == "rewrite" and missing:
            raise UserError(f"config.targets.template must have {{question}} and {{answer}}, got {shown(self.template)}")

    def unread(self) -> Iterator[Unread]:
        """Settings of the other kinds."""
        off = {"share": 0.0, "refusals": (), "prefix": False, "rto": False, "refusal": "", "positions": 1.0, "template": ""}
        own = {
            "benign_refusal": ("share", "refusals"),
            "derta": ("prefix", "rto", "refusal", "positions"),
            "rewrite": ("template",),
        }
        for name in (name for name in off if name not in own.get(self.kind, ())):
            yield Unread(f"targets.{name}", f"config.targets.kind is {self.kind!r}", off[name])
        if self.kind == "derta" and not self.rto:
            yield from (Unread(f"targets.{name}", "config.targets.rto is off", off[name]) for name in ("refusal", "positions"))


@dataclass(frozen=True)
class SFTConfig(SupervisedConfig):
    """`srlhfv sft`."""

    stage: ClassVar[str] = "sft"
    init_random: bool  # keep only the shapes and the tokenizer of `init`, start from random weights
    targets: TargetsConfig
    keep_best: Annotated[str, OneOf("", *held_out.SFT)]  # the step that is exported: the best of those evaluated; "" = the last

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        yield from super().unread()
        yield from held_out.unread(bool(self.evaluation), self.evaluation_every, self.keep_best)
        if self.init_random:
            yield from of_units("optimizer", "with config.init_random the weights are drawn anew, and have no units yet")
        if self.log.samples_every == 0:
            yield Unread("log.samples", "config.log.samples_every is 0")
            yield Unread("log.guard", "config.log.samples_every is 0", "")
        yield from self.targets.unread()
        if self.targets.pairs:
            yield Unread("data.train_on", "config.targets reads two answers to the last question", "last")
        if self.targets.kind == "rewrite" and not self.evaluation:
            yield Unread("log.samples_every", "config.targets changes the questions: give config.evaluation for others", 0)
