"""Supervised fine-tuning: token-mean cross-entropy on responses. Prompts, images and pads carry no loss."""

import functools
from pathlib import Path

from srlhfv_jax.batches import SupervisedBatch
from srlhfv_jax.config import SFTConfig
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.card import Product
from srlhfv_jax.losses import masked, sft
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.runs.run import describe_parameters, export_run, last_numbers, start
from srlhfv_jax.supervised import train as supervised
from srlhfv_jax.training import state as states

PRODUCT = Product("sft", "A supervised policy: it imitates the answers it was shown. It was not made safe.", answers=True)


def run(settings: SFTConfig, workdir: Path) -> dict[str, float]:
    """Train and export to WORKDIR/export; returns the numbers of the last step (`loss`, `entropy`, `grad_norm`)."""
    started = start(settings, workdir)
    hosts.check_batch(settings.data.batch_size, started.mesh, "a batch of")
    key = states.key(settings.seed, 0, "init") if settings.init_random else None
    if settings.lora.rank and settings.init_random:
        raise UserError("config.init_random with config.lora.rank: the export would be an adapter over weights that nobody has")
    if key is None:
        checkpoints.check_checkpoint(settings.init, "config.init")
    rows = inputs.prepare(
        "supervised", settings.data, checkpoints.load_shape(settings.init, settings.model, settings.data.chat_template)
    )
    model = checkpoints.load_init(settings, started.mesh, random_key=key)
    inputs.check_prompt_suffix(model, rows)
    tree, base = checkpoints.trained_part(settings.lora, model, started.mesh, states.key(settings.seed, 0, "adapter"))
    describe_parameters("policy", tree, started.mesh)
    tree = supervised.train(
        "sft",
        settings,
        started,
        tree,
        inputs.batches(rows, settings.data, settings.seed, started.mesh),
        objective(model.config, settings).loss,
        show=("loss", "entropy"),
        base=base,
    )
    result = last_numbers(started) | {"rows": len(rows.rows)}
    export_run(started, PRODUCT, model.config, tree, base=model.path, result=result)
    return result


def objective(config: VLMConfig, settings: SFTConfig) -> supervised.Objective:
    """The loss over rows with one response; no heads."""
    return supervised.Objective(functools.partial(loss, config), (("supervised", settings.data),), {})


def loss(config: VLMConfig, tree, batch: SupervisedBatch) -> masked.Loss:
    """Sum and count of the negative log-likelihood of response tokens."""
    logp_BR, entropy_BR = sequences.response_logp(config, tree, batch, sequences.encode(config, tree, batch.images))
    total, count = sft.sft(logp_BR, batch.response_mask_BR)
    return masked.Loss(total, count, {"entropy": masked.token_mean(entropy_BR, batch.response_mask_BR)})
