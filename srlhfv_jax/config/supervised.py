"""Settings that `srlhfv sft`, `scores` (`reward`, `cost`), `preference` and `guard` share."""

from collections.abc import Iterator
from dataclasses import dataclass

from srlhfv_jax.config.base import CheckpointConfig, DataConfig, LogConfig, LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
from srlhfv_jax.config.ranges import CountOrOff, Parts, Seed
from srlhfv_jax.config.unread import Unread, of_adapters


@dataclass(frozen=True)
class SupervisedConfig:
    """A stage that learns from labelled rows."""

    seed: Seed  # of weights and heads, rows and their order
    init: str  # what training starts from: a workdir, an export or a Hugging Face folder
    steps: CountOrOff  # batches; 0 = export what `init` holds
    microbatches: Parts  # gradient accumulation inside a step
    evaluation: str  # path of held-out rows, read with the settings of `data` but for its split; "" = none
    evaluation_split: str  # as data.split
    evaluation_every: CountOrOff  # steps between two evaluations while training; 0 = at the end alone
    patience: CountOrOff  # evaluations without a better `keep_best` before the run ends; 0 = it goes to its last step
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
        if not self.evaluation:
            yield Unread("evaluation_split", "there is no config.evaluation")
