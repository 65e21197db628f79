"""Settings of `srlhfv sft`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from srlhfv_jax.config import held_out
from srlhfv_jax.config.base import CheckpointConfig, DataConfig, LogConfig, LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
from srlhfv_jax.config.ranges import CountOrOff, OneOf, Parts, Seed
from srlhfv_jax.config.unread import Unread, of_adapters


@dataclass(frozen=True)
class SFTConfig:
    """`srlhfv sft`."""

    stage: ClassVar[str] = "sft"
    seed: Seed  # of weights, rows and their order
    init: str  # a Hugging Face folder, an export, or the workdir of an earlier stage
    init_random: bool  # keep only the shapes and the tokenizer of `init`, start from random weights
    steps: CountOrOff  # batches; 0 = export what `init` holds
    microbatches: Parts  # gradient accumulation inside a step
    evaluation: str  # path of held-out rows, read with the settings of `data` but for its split; "" = none
    evaluation_split: str  # as data.split
    evaluation_every: CountOrOff  # steps between two evaluations while training; 0 = at the end alone
    keep_best: Annotated[str, OneOf("", *held_out.SFT)]  # the step that is exported: the best of those evaluated; "" = the last
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
        yield from held_out.unread(bool(self.evaluation), self.evaluation_every, self.keep_best)
        if not self.evaluation:
            yield Unread("evaluation_split", "there is no config.evaluation")
        if self.log.samples_every == 0:
            yield Unread("log.samples", "config.log.samples_every is 0")
