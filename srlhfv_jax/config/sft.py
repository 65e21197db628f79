"""Settings of `srlhfv sft`."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from srlhfv_jax.config.base import CheckpointConfig, DataConfig, LogConfig, LoraConfig, MeshConfig, ModelConfig, OptimizerConfig
from srlhfv_jax.config.ranges import CountOrOff, Parts, Seed
from srlhfv_jax.config.unread import Unread, of_adapters, of_samples


@dataclass(frozen=True)
class SFTConfig:
    """`srlhfv sft`."""

    stage: ClassVar[str] = "sft"
    seed: Seed  # of weights, rows and their order
    init: str  # a Hugging Face folder, an export, or the workdir of an earlier stage
    init_random: bool  # keep only the shapes and the tokenizer of `init`, start from random weights
    steps: CountOrOff  # batches; 0 = export what `init` holds
    microbatches: Parts  # gradient accumulation inside a step
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

    def unread(self) -> Iterator[Unread]:
        """Settings that nothing reads in the mode that the others choose."""
        yield from of_adapters(self.lora)
        yield from of_samples()
