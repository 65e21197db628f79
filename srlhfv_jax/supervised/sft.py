"""Supervised fine-tuning: token-mean cross-entropy on responses. Prompts, images and pads carry no loss.

Where `config.targets` says so, rows teach something else than their answers (data/targets.py); held-out rows teach nothing, and are
read as they are."""

import functools
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from srlhfv_jax.batches import SupervisedBatch
from srlhfv_jax.config import DataConfig, SFTConfig
from srlhfv_jax.data import loader, targets
from srlhfv_jax.errors import UserError
from srlhfv_jax.hf.card import Product
from srlhfv_jax.losses import masked, sft
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import with_backbone
from srlhfv_jax.parallel import hosts
from srlhfv_jax.parallel.microbatches import over_rows
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.runs.run import describe_parameters, export_run, finish, last_numbers, start
from srlhfv_jax.runs.stage import LoadGuard
from srlhfv_jax.supervised import train as supervised, watch
from srlhfv_jax.training import state as states

PRODUCT = Product("sft", "A supervised policy: it imitates the answers it was shown. It was not made safe.", answers=True)


def run(settings: SFTConfig, workdir: Path, load_guard: LoadGuard | None = None) -> dict[str, float]:
    """Train and export to WORKDIR/export; returns the numbers of the last step (`loss`, `entropy`, `grad_norm`), and `evaluation.loss`
    where held-out rows are given.

    Args:
        load_guard: as in `runs.run.start`.
    """
    settings.targets.check()
    started = start(settings, workdir, load_guard)
    hosts.check_batch(settings.data.batch_size, started.mesh, "a batch of")
    key = states.key(settings.seed, 0, "init") if settings.init_random else None
    if settings.lora.rank and settings.init_random:
        raise UserError("config.init_random with config.lora.rank: the export would be an adapter over weights that nobody has")
    if key is None:
        checkpoints.check_checkpoint(settings.init, "config.init")
    shape = checkpoints.load_shape(settings.init, settings.model, settings.data.chat_template)
    rows = inputs.prepare("supervised", settings.data, shape, targets=targets.Rule(settings.targets, settings.seed))
    lessons = targets.counts(settings.targets.kind, rows.rows)
    if settings.targets.pairs and not any(lessons.values()):
        raise UserError(
            f"{settings.data.path}: no row has a safe and an unsafe answer, which config.targets.kind={settings.targets.kind!r} needs"
        )
    if lessons:
        hosts.say(
            f"config.targets: of {len(rows.rows)} rows to learn from " + ", ".join(f"{n} {name}" for name, n in lessons.items())
        )
    held, held_data = None, inputs.elsewhere(settings.data, settings.evaluation, settings.evaluation_split)
    if settings.evaluation:
        held = inputs.prepare("supervised", held_data, shape)
        inputs.check_held_out("config.evaluation", held, rows)
    model = checkpoints.load_init(settings, started.mesh, random_key=key)
    inputs.check_prompt_suffix(model, *filter(None, (rows, held)))
    tree, base = checkpoints.trained_part(settings.lora, model, started.mesh, states.key(settings.seed, 0, "adapter"))
    describe_parameters("policy", tree, started.mesh)
    evaluate = None if held is None else held_out(model.config, settings, base, held, held_data, started.mesh)
    tree, chosen = supervised.train(
        "sft",
        settings,
        started,
        tree,
        inputs.batches(rows, settings.data, settings.seed, started.mesh),
        objective(model.config, settings).loss,
        show=("loss", "entropy"),
        base=base,
        evaluate=evaluate,
        sample=watch.make(settings, model, base, started, held or rows),
    )
    result = last_numbers(started) | chosen | {"rows": len(rows.rows)} | {f"targets.{name}": n for name, n in lessons.items()}
    export_run(started, PRODUCT, model.config, tree, base=model.path, result=result)
    if evaluate is not None:
        result |= evaluate(tree)
    return finish(started, PRODUCT, result)


def objective(config: VLMConfig, settings: SFTConfig) -> supervised.Objective:
    """The loss over rows with one response; no heads."""
    return supervised.Objective(functools.partial(loss, config), (("supervised", settings.data),), {})


def loss(config: VLMConfig, tree, batch: SupervisedBatch) -> masked.Loss:
    """Sum and count of the negative log-likelihood of response tokens, or of other labels and on a part of them."""
    features = sequences.encode(config, tree, batch.images)
    logp_BR, entropy_BR = sequences.response_logp(config, tree, batch, features, label_BR=batch.label_BR)
    mask_BR = batch.response_mask_BR if batch.loss_mask_BR is None else batch.loss_mask_BR
    total, count = sft.sft(logp_BR, mask_BR)
    return masked.Loss(total, count, {"entropy": masked.token_mean(entropy_BR, mask_BR)})


def held_out(
    config: VLMConfig, settings: SFTConfig, base: dict | None, rows: loader.Prepared, data: DataConfig, mesh: Mesh
) -> supervised.Evaluate:
    """`evaluation.loss` of a trained tree: the same loss on held-out rows, in nats per token.

    Args:
        base: the frozen backbone under a tree that holds an adapter.
    """

    def of_rows(tree: dict, batch: SupervisedBatch) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        logp_BR, _ = sequences.response_logp(config, tree, batch, sequences.encode(config, tree, batch.images))
        mask_BR = batch.response_mask_BR
        return masked.keep(-logp_BR, mask_BR).sum(axis=1), mask_BR.sum(axis=1)

    @functools.partial(jax.jit, out_shardings=hosts.row_sharding(mesh))
    def sums(tree: dict, batch: SupervisedBatch) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
        return over_rows(functools.partial(of_rows, tree), batch, settings.microbatches)

    def evaluate(tree: dict) -> dict[str, float]:
        total, tokens = 0.0, 0
        for batch, _ in inputs.in_order(rows, data, mesh):  # rows that fill up the last batch have no token
            total_B, tokens_B = hosts.to_host(sums(with_backbone(base, tree), batch))
            total, tokens = total + float(total_B.sum(dtype=np.float64)), tokens + int(tokens_B.sum())
        return {"evaluation.loss": total / tokens}

    return evaluate
