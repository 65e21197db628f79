"""Rows with answers for commands that look into a model and train nothing: `srlhfv weights units` and `diagnose`."""

import dataclasses
from collections.abc import Iterator

import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from srlhfv_jax.batches import SupervisedBatch
from srlhfv_jax.config import DataConfig, MeshConfig, inference
from srlhfv_jax.data import sources
from srlhfv_jax.data.given import RowSettings, single_pass
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.mesh import use_mesh
from srlhfv_jax.runs import checkpoints, inputs


@dataclasses.dataclass(frozen=True)
class AnsweredSettings(RowSettings):
    """Flags of a command that reads two sets of rows with answers."""

    prompt_length: int  # tokens (P); 0 = that of the longest prompt
    response_length: int  # tokens (R); 0 = that of the longest answer
    batch_size: int
    dtype: str


def data(settings: AnsweredSettings, path: str) -> DataConfig:
    """Settings of the rows at `path`."""
    lengths = dict(prompt_length=settings.prompt_length, response_length=settings.response_length)
    return single_pass(path, settings, **lengths, batch_size=settings.batch_size)


def mesh(settings: AnsweredSettings) -> Mesh:
    """All devices, and a batch that they can share.

    Raises:
        UserError: they cannot.
    """
    hosts.initialize()
    everywhere = use_mesh(MeshConfig(data=-1, fsdp=1, tensor=1))
    hosts.check_batch(settings.batch_size, everywhere, "--batch_size of")
    return everywhere


def check(settings: AnsweredSettings, paths: tuple[str, ...], policies: dict[str, str]) -> None:
    """Open all that is to be read before any weights are.

    Args:
        policies: path of each checkpoint, by its option.

    Raises:
        UserError: rows or a checkpoint that cannot be read.
    """
    for path in paths:
        sources.check(data(settings, path))
    for option, path in policies.items():
        checkpoints.check_policy(path, option)


def load(settings: AnsweredSettings, path: str, everywhere: Mesh) -> Pretrained:
    """A checkpoint with its adapter merged.

    Raises:
        UserError: as `checkpoints.load`, or it is an activated adapter.
    """
    model = checkpoints.load(path, inference(settings.dtype), everywhere)
    checkpoints.refuse_activated(model)
    return model


def batches(settings: AnsweredSettings, path: str, model: Pretrained, everywhere: Mesh) -> Iterator[SupervisedBatch]:
    """Every row with an answer once, in order; says how many there are. Rows that fill up the last batch have no response."""
    where = data(settings, path)
    examples = sources.load_examples(where)
    prepared = inputs.fit_loosely("supervised", examples, where, model)
    drops = sources.describe_drops(examples.drops + prepared.drops)
    hosts.say(f"{path}: {len(prepared.rows)} of {examples.source_rows} rows used; {drops}")
    return (batch for batch, _ in inputs.in_order(prepared, where, everywhere))


def read_mask(batch: SupervisedBatch) -> Bool[Array, "B T"]:
    """The tokens that decide on an answer: the prompt's last one, and the answer's own. Nothing of rows without one."""
    mask_BR = batch.response_mask_BR
    before = batch.tokens_BT.shape[1] - mask_BR.shape[1] - 1
    return jnp.concatenate([jnp.zeros((len(mask_BR), before), bool), jnp.any(mask_BR, axis=1, keepdims=True), mask_BR], axis=1)
