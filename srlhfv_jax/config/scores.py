"""Settings of `srlhfv scores`, `reward` and `cost`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from srlhfv_jax.config import held_out
from srlhfv_jax.config.base import CheckpointConfig, DataConfig, LogConfig, LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
from srlhfv_jax.config.ranges import CountOrOff, OneOf, Parts, Seed, Weight
from srlhfv_jax.config.unread import Unread, of_adapters, of_samples


@dataclass(frozen=True)
class ScoresConfig:
    """`srlhfv scores`, `reward` and `cost`: score heads on one backbone from dual preferences."""

    stage: ClassVar[str] = "scores"
    seed: Seed  # of heads, rows and their order
    init: str  # the supervised policy: a workdir, an export or a Hugging Face folder
    heads: tuple[Annotated[str, OneOf("reward", "cost")], ...]  # both, or one of them
    sign: Annotated[str, OneOf("label", "graded")]  # +-1 from the safety label, or -harmless_rate
    sign_weight: Weight  # kappa of the sign terms
    score_l2: Weight  # rho
    steps: CountOrOff  # batches
    microbatches: Parts  # gradient accumulation inside a step
    evaluation: str  # path of held-out pairs, read with the settings of `data` but for its split; "" = none
    evaluation_split: str  # as data.split
    evaluation_every: CountOrOff  # steps between two evaluations while training; 0 = at the end alone
    keep_best: Annotated[str, OneOf("", *held_out.PAIRS)]  # the step that is exported: the best of those evaluated; "" = the last
    patience: CountOrOff  # evaluations without a better one before the run ends; 0 = it goes to its last step
    lora: LoraConfig
    model: ModelConfig
    mesh: MeshConfig
    data: DataConfig
    optimizer: OptimizerConfig
    checkpoint: CheckpointConfig
    log: LogConfig

    @property
    def start(self) -> str:
        """The checkpoint that training starts from."""
        return self.init

    @property
    def held_out(self) -> tuple[str, ...]:
        """Paths and splits of the rows that evaluations are of."""
        return (self.evaluation, self.evaluation_split)

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        yield from of_adapters(self.lora)
        yield from of_samples()
        yield Unread("data.train_on", "it is about rows to imitate, and here answers are scored", "last")
        yield Unread("model.logp_chunk", "no logits are made for scores", 0)
        yield from held_out.unread(bool(self.evaluation), self.evaluation_every, self.keep_best)
        if not self.evaluation:
            yield Unread("evaluation_split", "there is no config.evaluation")
        if "cost" not in self.heads:
            yield from (Unread(name, "it is of the cost head, and config.heads has none") for name in ("sign", "sign_weight"))
