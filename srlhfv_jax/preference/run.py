"""A policy from pairs of which one answer wins: DPO and its relatives.

rows -> what other models say of them, once (reference.py) -> terms (terms.py) -> one loss of arrays (losses/preference.py)
"""

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float

from srlhfv_jax.batches import PreferenceBatch
from srlhfv_jax.config import DataConfig, PreferenceConfig
from srlhfv_jax.config.preference import NEEDED
from srlhfv_jax.data import chat, loader
from srlhfv_jax.data.drops import REASONS
from srlhfv_jax.data.preferences import Choice
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.score_metrics import COST, REWARD
from srlhfv_jax.hf.card import Product
from srlhfv_jax.hf.load import load_config_and_processor
from srlhfv_jax.losses import masked, preference
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts
from srlhfv_jax.preference import reference, terms, tokens, unpaired
from srlhfv_jax.preference.reference import Policy, Reader
from srlhfv_jax.runs import checkpoints, inputs
from srlhfv_jax.runs.run import describe_parameters, export_run, finish, last_numbers, start
from srlhfv_jax.supervised import train as supervised
from srlhfv_jax.training import state as states

PRODUCT = Product(
    "preference",
    "A policy trained on pairs of answers of which one was preferred. What it learned of safety is what these pairs say of it.",
    answers=True,
)


def run(settings: PreferenceConfig, workdir: Path) -> dict[str, float]:
    """Train and export to WORKDIR/export; returns the last step's numbers, and `evaluation.*` where held-out rows are given."""
    settings.check()
    started = start(settings, workdir)
    hosts.check_batch(settings.data.batch_size, started.mesh, "a batch of")
    _check_checkpoints(settings)
    sections = _sections(settings)
    rows, weight = _prepare(settings, sections), 1.0
    if settings.loss == "kto":
        weight = unpaired.undesirable_weight(settings.undesirable_weight, rows["data"].rows)
        rows = {name: unpaired.with_others(some, settings.seed) for name, some in rows.items()}
        hosts.say(f"preference: an unsafe answer weighs {weight:.4g}, a safe one 1")
    folder = Path(settings.reference_cache or workdir / "reference")
    readers = {name: Reader(data, settings.model, started.mesh, settings.microbatches, folder) for name, data in sections.items()}
    numbers = {name: terms.Numbers(score_NS=_scores(settings, some, readers[name])) for name, some in rows.items()}
    if settings.tokens.scorer:
        for name, some in rows.items():
            rows[name], numbers[name] = tokens.apply(settings.tokens, some, numbers[name], readers[name])
    numbers = {name: _by_others(settings, some, readers[name], numbers[name]) for name, some in rows.items()}
    model = checkpoints.load_init(settings, started.mesh)
    inputs.check_prompt_suffix(model, *rows.values())
    tree, base = checkpoints.trained_part(settings.lora, model, started.mesh, states.key(settings.seed, 0, "adapter"))
    describe_parameters("policy", tree, started.mesh)
    policy = Policy(model.config, tree, base)
    for name, some in rows.items():
        if settings.from_reference:
            by_init = reference.logp(settings.init, some, readers[name], policy)
            numbers[name] = numbers[name]._replace(reference_NS=by_init)
        rows[name], numbers[name] = terms.finite(some, numbers[name])
        for reason in (tokens.NONE_KEPT, terms.NOT_FINITE):
            if lost := rows[name].drops[reason]:
                hosts.say(f"{sections[name].path}: {lost} pairs dropped: {reason} ({REASONS[reason]})")
    for name, some in rows.items():
        rows[name] = some._replace(terms=terms.make(settings, some.rows, numbers[name], weight))
    if settings.from_reference:
        reference.self_test(policy, rows["data"], readers["data"])
    evaluate = held_out(policy, settings, rows["evaluation"], readers["evaluation"]) if settings.evaluation else None
    goal = objective(model.config, settings)
    tree, chosen = supervised.train(
        "preference",
        settings,
        started,
        tree,
        _batches(settings, rows, started.mesh),
        goal.loss,
        show=("loss", "accuracy", "winner_log_ratio", "desirable_log_ratio", "kto_baseline"),
        first_pass=goal.first_pass,
        base=base,
        evaluate=evaluate,
    )
    result = last_numbers(started) | chosen | {"rows": len(rows["data"].rows)}
    export_run(started, PRODUCT, model.config, tree, base=model.path, result=result)
    if evaluate is not None:
        result |= evaluate(tree)
    return finish(started, PRODUCT, result)


def objective(config: VLMConfig, settings: PreferenceConfig) -> supervised.Objective:
    """The loss over pairs; no heads."""
    parts = [("preference", settings.data)] * (2 if settings.replay.path else 1)
    first_pass = functools.partial(unpaired.with_baseline, config, settings.microbatches) if settings.loss == "kto" else None
    return supervised.Objective(functools.partial(loss, config, settings), tuple(parts), {}, first_pass=first_pass)


def loss(config: VLMConfig, settings: PreferenceConfig, tree, batch: Any) -> masked.Loss:
    """The loss that `config.loss` names and the winner's likelihood beside it, each a mean over pairs; with replay that of both batches."""
    if isinstance(batch, PreferenceBatch):
        return _of_pairs(config, settings, tree, batch)
    pairs, replay = (_of_pairs(config, settings, tree, part) for part in batch)
    sums, counts = ({"pairs": one, "replay": other} for one, other in zip(pairs[:2], replay[:2]))
    return masked.Loss(sums, counts, pairs.metrics | {"replay_loss": (replay.sum, replay.count)})


def _of_pairs(config: VLMConfig, settings: PreferenceConfig, tree, batch: PreferenceBatch) -> masked.Loss:
    logp_BS = reference.kept_logp(config, tree, batch, sequences.encode(config, tree, batch.images))
    return of_logp(settings, logp_BS, _tokens(batch), batch)


def _tokens(batch: PreferenceBatch) -> Float[Array, "B 2"]:
    """Number of tokens of both answers that count."""
    mask_BSR = batch.response_mask_BSR if batch.keep_BSR is None else batch.response_mask_BSR & batch.keep_BSR
    return jnp.sum(mask_BSR, axis=2, dtype=jnp.float32)


def of_logp(settings: PreferenceConfig, logp_BS, tokens_BS, batch: PreferenceBatch) -> masked.Loss:
    """The same of log-probabilities in hand."""
    if settings.loss == "kto":
        return unpaired.loss(logp_BS, batch)
    weight_B, winner_B, reference_BS = batch.weight_B, batch.winner_B, batch.reference_BS
    if settings.loss == "unlearn":
        cap = settings.forget_cap if settings.forget_coef > 0 else math.inf  # what is learned has no limit
        weights = dict(keep=settings.keep_coef, forget=settings.forget_coef, cap=cap)
        total, count = preference.unlearn(logp_BS, tokens_BS, winner_B, weight_B, **weights)
    winner = [preference.winner_first(x_BS, winner_B)[0] for x_BS in (logp_BS, tokens_BS)]
    if settings.mean:
        logp_BS, reference_BS = (preference.per_token(x_BS, tokens_BS) for x_BS in (logp_BS, reference_BS))
    ratios = preference.log_ratios(logp_BS, reference_BS, winner_B)
    if settings.loss == "logistic":
        total, count = preference.logistic(ratios[0] - ratios[1], batch.offset_B, batch.flip_B, weight_B, scale=batch.scale_B)
    elif settings.loss == "square":
        total, count = preference.square(ratios[0] - ratios[1], batch.target_B, weight_B)
    total += preference.sft_term(*winner, weight_B * batch.sft_B)[0]
    flags = preference.winner_first(batch.unsafe_BS, winner_B)
    metrics = preference.numbers(*ratios, *flags, weight_B, scale=batch.scale_B)
    return masked.Loss(total, count, metrics | {"winner_nll": preference.sft_term(*winner, weight_B)})


def held_out(policy: Policy, settings: PreferenceConfig, rows: loader.Prepared, reader: Reader) -> supervised.Evaluate:
    """`evaluation.loss` and `evaluation.accuracy` of a trained tree on held-out pairs."""
    read = reference.jit_logp(policy.config, reader.mesh, settings.microbatches)

    def evaluate(tree: dict) -> dict[str, float]:
        sums = np.zeros(2), np.zeros(2)
        for batch, _ in inputs.in_order(rows, reader.data, reader.mesh):
            logp_BA = read(tree, policy.base, batch)[reference.LOGP]
            if batch.unpaired is not None:
                batch = unpaired.at_baseline(batch, logp_BA[:, 2])
            part = of_logp(settings, logp_BA[:, :2], _tokens(batch), batch)
            for total, one in zip(sums, hosts.to_host(((part.sum, part.count), part.metrics["accuracy"]))):
                total += np.asarray(one, np.float64)
        return {f"evaluation.{name}": float(total / count) for name, (total, count) in zip(("loss", "accuracy"), sums)}

    return evaluate


def _sections(settings: PreferenceConfig) -> dict[str, DataConfig]:
    """Sections of rows by name: those to learn from, and those of replay and evaluation where there are any."""
    places = {
        "replay": (settings.replay.path, settings.replay.split),
        "evaluation": (settings.evaluation, settings.evaluation_split),
    }
    others = {name: inputs.elsewhere(settings.data, *place) for name, place in places.items() if place[0]}
    return {"data": settings.data} | others


def _prepare(settings: PreferenceConfig, sections: Mapping[str, DataConfig]) -> dict[str, loader.Prepared]:
    """Pairs with their winners, by section."""
    shape = checkpoints.load_shape(settings.init, settings.model, settings.data.chat_template)
    choice, rows = Choice(settings.axis, settings.transform, settings.reads_flags), {}
    for name, data in sections.items():
        how = Choice(settings.axis, "none", False) if name == "replay" else choice
        recorded = settings.blind if name == "data" else ""
        rows[name] = inputs.prepare("preference", data, shape, choice=how, recorded=recorded)
    if "replay" in rows:
        rows["replay"] = _as_safe(rows["replay"])
    if "evaluation" in rows:
        inputs.check_held_out("config.evaluation", rows["evaluation"], rows["data"])
    return rows


def _scores(settings: PreferenceConfig, rows: loader.Prepared, reader: Reader) -> np.ndarray | None:
    """Scores that say who wins, by a scorer or by two policies; None: labels do."""
    scores, multiplier = settings.scores, settings.scores.multiplier
    if settings.axis != "scores":
        return None
    if scores.scorer:
        told = reference.scores(scores.scorer, rows, reader)
        return told[REWARD] - multiplier * told[COST]
    helpful_NS, harmless_NS = (_ratios(path, settings.reference_path, rows, reader) for path in (scores.helpful, scores.harmless))
    return settings.beta * (helpful_NS + multiplier * harmless_NS)  # without beta the optimum would be too sharp by 1 / beta


def _ratios(path: str, against: str, rows: loader.Prepared, reader: Reader) -> np.ndarray:
    return reference.logp(path, rows, reader) - reference.logp(against, rows, reader)


def _by_others(settings: PreferenceConfig, rows: loader.Prepared, reader: Reader, numbers: terms.Numbers) -> terms.Numbers:
    """Numbers of models that leave memory before the policy comes, with those that are given."""
    path_of_reference = settings.reference_path
    if settings.has_reference and not settings.from_reference:
        numbers = numbers._replace(reference_NS=reference.logp(path_of_reference, rows, reader))
    if settings.margin.path:
        against = settings.margin.reference or path_of_reference
        numbers = numbers._replace(margin_NS=_ratios(settings.margin.path, against, rows, reader))
    return numbers


def _as_safe(rows: loader.Prepared) -> loader.Prepared:
    """Rows whose answers are all labelled safe."""
    safe = (False, False)
    return rows._replace(rows=tuple(row._replace(example=row.example._replace(unsafe=safe)) for row in rows.rows))


def _batches(settings: PreferenceConfig, rows: dict[str, loader.Prepared], mesh: Mesh) -> loader.Batches | loader.MultiStream:
    """Batches of pairs, and one of replay beside each where there is any."""
    pairs = inputs.batches(rows["data"], settings.data, settings.seed, mesh)
    if "replay" not in rows:
        return pairs
    return loader.MultiStream(pairs=pairs, replay=inputs.batches(rows["replay"], settings.data, settings.seed + 1, mesh))


def _check_checkpoints(settings: PreferenceConfig) -> None:
    """Open every checkpoint before anything is read.

    Raises:
        UserError: one is not there, lacks a head, or has another tokenizer than the policy.
    """
    margin, scores = settings.margin, settings.scores
    named = {"init": settings.init, "reference": settings.reference_path if settings.has_reference else ""}
    for name, path, what in (
        ("margin.path", margin.path, "a policy that was trained for the second objective"),
        ("blind", settings.blind, "answers without the picture, of srlhfv generate --picture=blank --out=FILE"),
    ):
        if path == NEEDED:
            raise UserError(f"this preset is nothing without config.{name}: give --config.{name}=..., {what}")
    named |= {"margin.path": margin.path, "margin.reference": margin.reference}
    named |= {"scores.scorer": scores.scorer, "scores.helpful": scores.helpful, "scores.harmless": scores.harmless}
    named |= {"tokens.scorer": settings.tokens.scorer}
    heads = {"scores.scorer": (REWARD, COST), "tokens.scorer": (settings.tokens.head,)}
    words = _vocabulary(settings.init)
    for name, path in named.items():
        if not path:
            continue
        checkpoints.check_checkpoint(path, f"config.{name}", *heads.get(name, ()))
        if path != settings.init and _vocabulary(path) != words:
            raise UserError(
                f"config.{name}={path} has another tokenizer than config.init={settings.init}: it would read other words; give a model that was "
                "trained from the same one"
            )


def _vocabulary(path: str) -> dict[str, int]:
    return chat.codec(load_config_and_processor(path)[1]).tokenizer.get_vocab()
