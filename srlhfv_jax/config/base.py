"""Sections that the settings of several stages have, and settings as plain values."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Annotated, Any

from srlhfv_jax.config.ranges import (
    Axis,
    Count,
    CountOrOff,
    Dtype,
    OneOf,
    PartRate,
    Positive,
    Range,
    Regex,
    Rows,
    Share,
    Tokens,
    Weight,
)
from srlhfv_jax.errors import UserError, public, shown

TOKENS = 2**28  # of a batch: 1 GB of ids


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes (data, fsdp, tensor); one of them may be -1: whatever devices are left."""

    data: Axis  # devices along it: rows are split, weights are not
    fsdp: Axis  # rows and weights are split
    tensor: Axis  # weights are split, rows are not


@dataclass(frozen=True)
class ModelConfig:
    """Settings for loading and running a checkpoint."""

    dtype: Dtype  # of activations; float32 is multiplied as such on every platform
    param_dtype: Dtype  # of fully trained parameters; float32 masters unless memory forbids
    remat: Annotated[str, OneOf("none", "dots", "layer")]  # what the backward pass computes again (models/stack.py)
    scan_unroll: CountOrOff  # layers per step of the layer scan; 0 = all of them
    attention: str  # "auto": the fused kernel of the platform; "xla", "splash" (TPU), "cudnn" (GPU): this one; models/kernels.py
    logp_chunk: Tokens  # response positions whose logits exist at a time, computed again for gradients; 0: all at once


def inference(dtype: str) -> ModelConfig:
    """A model that is run and never trained: parameters in the dtype of activations, nothing computed again."""
    return ModelConfig(dtype=dtype, param_dtype=dtype, remat="none", scan_unroll=1, attention="auto", logp_chunk=0)


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon with a schedule. `freeze` lists regular expressions on parameter paths ("vision/", "projector/")."""

    # "muon": for the kernels of layers, scaled so that it takes AdamW's rates, and NAdamW for the rest
    algorithm: Annotated[str, OneOf("adamw", "muon")]
    learning_rate: Share  # at its highest, after the warm-up
    head_learning_rate: Share  # of score heads and of a guard's; 0 = learning_rate
    schedule: Annotated[str, OneOf("constant", "cosine", "linear")]  # after the warm-up; the last two fall to 0
    warmup_fraction: Share  # of all steps
    weight_decay: Weight  # decoupled, of kernels and embeddings
    b1: Annotated[float, Range(0, 0.999999)]  # decay of the first moment
    b2: Annotated[float, Range(0, 0.9999999)]  # decay of the second moment
    eps: Annotated[float, Range(0, 1, above=True)]  # added to the root of the second moment
    clip_norm: Weight  # global norm; 0 = no clipping
    freeze: tuple[Regex, ...]  # regular expressions on parameter paths that stay as they are, such as "vision/"
    part_rates: tuple[
        Annotated[str, PartRate()], ...
    ]  # "PATTERN=RATE": another highest rate for the paths that match, such as "projector/=2e-6"
    frozen_units: (
        str  # file of srlhfv weights units: weights of its safety-critical and complex units stay as they are; "" = none
    )
    only_units: str  # such a file: of the backbone, weights of its redundant units alone are trained; "" = all are


@dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters over a frozen backbone, instead of training it (models/lora.py)."""

    rank: Annotated[int, Range(0, 2**14)]  # 0 = none: the backbone itself is trained
    alpha: Positive  # what the adapter adds counts alpha / rank times
    targets: tuple[Regex, ...]  # regular expressions on the paths of kernels of layers, such as "text/layers/.*_proj"
    int8: bool  # the frozen decoder under them in eight bits (models/quantize.py)
    activated: bool  # they act from the end of the prompt on: all before is the backbone's own, read once for all roles


@dataclass(frozen=True)
class DataConfig:
    """One source of rows and how they become batches."""

    # a file, a folder of files, a TFDS folder, owner/name of the Hugging Face hub, or gs://...; several as "a.parquet:0.7,b.jsonl:0.3",
    # with weights or without
    path: str
    split: str  # of a TFDS data set or a folder of files, with or without a slice such as "train[:1000]"; one file needs none
    image_dir: str  # images named by relative paths are looked up here; "" = beside the file
    revision: str  # of a data set of the hub: a branch, a tag or a commit; "" = its newest one
    columns: tuple[
        str, ...
    ]  # "question=text": our name of a column and the file's; --config.data.columns.question=text does the same
    label_means: Annotated[str, OneOf("desirable", "unsafe", "safe")]  # a `label` of an answer that is true
    chosen_means: Annotated[str, OneOf("helpful", "safer", "both")]  # a `chosen` answer beside a rejected one
    fetch: bool  # pictures behind http addresses are downloaded, into the cache
    # every picture is decoded before step 0, and rows where that fails are dropped; otherwise its header and its file are checked
    decode_first: bool
    allow_dir: str  # a second folder that links of images may lead to, and absolute paths name; "" = none
    prompt_length: Tokens  # P: tokens of the longest prompt, with its picture; rows with a longer one are dropped
    response_length: Annotated[int, Range(1, 2**20)]  # R: tokens of the longest answer, with its end
    batch_size: Rows  # rows, over all processes
    workers: Annotated[int, Range(0, 1024)]  # threads that decode and tokenise ahead
    max_pixels: CountOrOff  # of a picture after it was resized, where its family lets sizes differ; 0 = the checkpoint's limit
    picture_buckets: Annotated[int, Range(1, 16)]  # sizes that a batch's pictures are padded to: the largest, its half, ...
    system_prompt: str  # text of the system turn of rows that have none of their own; "" = none
    chat_template: str  # file of a chat template that replaces the checkpoint's own, and is exported with it; "" = its own
    # supervised rows: "last" answer of a conversation, or "all": a row for each answer, the turns before it as its prompt
    train_on: Annotated[str, OneOf("last", "all")]
    # shares of classes of the rows that are learned from: COLUMN:VALUE=SHARE, separated by commas, such as
    # "harmful:yes=0.1,harmful:no=0.9"; "" = rows come as often as they are there
    mix: str

    def __post_init__(self) -> None:
        if self.batch_size * (self.prompt_length + self.response_length) > TOKENS:
            raise UserError(
                f"config.data: a batch of {self.batch_size} rows of {self.prompt_length} + {self.response_length} tokens is above "
                f"{TOKENS} tokens: lower batch_size, prompt_length or response_length"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """Checkpoints that a run resumes from."""

    every_steps: CountOrOff  # steps between two; 0 = the last step alone
    keep: Count  # the newest so many


@dataclass(frozen=True)
class LogConfig:
    """Lines of WORKDIR/metrics.jsonl, and who shows them while a run goes on."""

    every_steps: Count  # steps between two lines
    tensorboard: bool  # also write event files
    trackers: tuple[Annotated[str, OneOf("wandb", "trackio")], ...]  # others that are told; each is an extra of the package
    project: str  # of these trackers
    samples_every: CountOrOff  # steps of sft or iterations of ppo_lag between two answers to the same prompts; 0 = none
    samples: Annotated[int, Range(1, 1000)]  # such prompts
    guard: str  # workdir or export of a guard, whose verdict stands beside each such answer; "" = none


def to_dict(settings: Any) -> dict[str, Any]:
    """Plain nested dict of a settings dataclass, as written to WORKDIR/config.json: without the secrets of addresses."""

    def public_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: public(value) if isinstance(value, str) else value for name, value in pairs}

    return dataclasses.asdict(settings, dict_factory=public_pairs)


def choose(value: str, path: str, *allowed: str) -> str:
    """Check a string setting against its allowed values; returns it, or raises UserError naming them."""
    if value not in allowed:
        raise UserError(f"{path} must be one of {', '.join(map(repr, allowed))}, got {shown(value)}")
    return value


def value_at(settings: Any, path: str) -> Any:
    """The value of a dotted path such as "data.path"."""
    return functools.reduce(lambda section, name: vars(section)[name], path.split("."), settings)
