"""The rows of PPO-Lagrangian: prompts, supervised rows beside them (PTX), and the prompts of the validation."""

import dataclasses

from jax.sharding import Mesh

from srlhfv_jax.config import DataConfig, PPOLagConfig
from srlhfv_jax.data import loader
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.runs import inputs


def prepare(settings: PPOLagConfig, shape: Pretrained) -> dict[str, loader.Prepared]:
    """All that a run reads, by setting: opened and checked before any weights."""
    rows = {"data": inputs.prepare("prompts", settings.data, shape)}
    if settings.ptx.coef > 0:
        rows["ptx"] = inputs.prepare("supervised", _ptx_data(settings), shape)
    if settings.validation.path:
        rows["validation"] = inputs.prepare(
            "prompts", inputs.elsewhere(settings.data, settings.validation.path, settings.validation.split), shape
        )
        inputs.check_held_out("config.validation", rows["validation"], rows["data"])
    return rows


def _ptx_data(settings: PPOLagConfig) -> DataConfig:
    return inputs.elsewhere(settings.data, settings.ptx.path, settings.ptx.split)


def batches(settings: PPOLagConfig, rows: dict[str, loader.Prepared], mesh: Mesh) -> loader.MultiStream:
    """Prompts, and supervised rows for PTX."""
    ptx = inputs.batches(rows["ptx"], _ptx_data(settings), settings.seed + 1, mesh) if "ptx" in rows else None
    prompts = dataclasses.replace(settings.data, batch_size=settings.prompts)
    return loader.MultiStream(prompts=inputs.batches(rows["data"], prompts, settings.seed, mesh), ptx=ptx)
