"""The guard: how severe the harm of a question, or of an answer to it, is, and of which kinds. Our own design (losses/severity.py).

rows -> questions and answers (data/guard_rows.py) -> severity and category heads, trained with their backbone -> thresholds on
P(unsafe) from held-out rows -> numbers on other held-out rows -> export

With `config.pairs.path`, reward and cost heads are trained beside it on the same backbone: the export is a guard and a scorer.
"""

import dataclasses
import functools
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from srlhfv_jax.batches import GuardBatch, PairBatch
from srlhfv_jax.config import DataConfig, GuardConfig
from srlhfv_jax.data import guard_rows, loader, sources, taxonomies
from srlhfv_jax.errors import UserError
from srlhfv_jax.guard import held_out, scoring
from srlhfv_jax.hf import hub
from srlhfv_jax.hf.card import Product
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.losses import masked, severity as severity_losses
from srlhfv_jax.models import guard_heads, score_heads
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import with_backbone
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.runs import checkpoints, inputs, labelled
from srlhfv_jax.runs.run import describe_parameters, export_run, finish, last_numbers, start
from srlhfv_jax.runs.unfinished import Unfinished
from srlhfv_jax.supervised import scores
from srlhfv_jax.supervised.train import Objective, train
from srlhfv_jax.training import optimizer as optimizers, state as states

SCORES = ("reward", "cost")
PRODUCT = Product(
    "guard",
    "A guard: how severe the harm of a question, or of an answer to it, is, and of which kinds (srlhfv_jax.guard.Guard loads it). "
    "Its thresholds were calibrated on rows like those it was trained on; elsewhere its rates of error are unknown.",
)


def run(settings: GuardConfig, workdir: Path) -> dict[str, float]:
    """Train, calibrate and export to WORKDIR/export; returns the last step's numbers, `threshold.PART`, and where rows are given
    `guard.*` (all held-out rows), `guard.input.*` and `guard.output.*` of `measure.metrics`, and for held-out pairs
    those of `supervised.scores`.

    Where `optimizer.freeze` keeps the whole backbone, the export also has the reward and cost heads of `init`: they still fit.
    """
    if not settings.parts:
        raise UserError("config.parts is empty: expected ('input', 'output') or one of them")
    categories, joint = taxonomies.categories(settings.taxonomy), bool(settings.pairs.path)
    started = start(settings, workdir)
    hosts.check_batch(settings.data.batch_size, started.mesh, "a batch of")
    if joint:
        hosts.check_batch(settings.pairs.batch_size, started.mesh, "config.pairs.batch_size:")
    checkpoints.check_checkpoint(settings.init, "config.init")
    rows = _rows(settings, checkpoints.load_shape(settings.init, settings.model, settings.data.chat_template))
    rows_of_head = labelled.of_guard(rows["data"], settings.parts, category_weight=settings.category_weight)
    counts = labelled.check(settings.data.path, rows_of_head)
    if joint:
        rows_of_head = labelled.of_pairs(rows["pairs"], SCORES, sign_weight=settings.pairs.sign_weight)
        counts |= labelled.check(settings.pairs.path, rows_of_head)
    model = checkpoints.load_init(settings, started.mesh)
    inputs.check_prompt_suffix(model, *rows.values())
    weights = _weights(rows["data"], settings.balance)
    heads = _start_heads(model.config, rows["data"], weights, states.key(settings.seed, 0, "guard"))
    tree, base = checkpoints.trained_part(settings.lora, model, started.mesh, states.key(settings.seed, 0, "adapter"))
    tree |= {"guard": rules.replicate(heads, started.mesh)}
    if joint:
        tree |= {"heads": scores.start_heads(model, SCORES, started.mesh, states.key(settings.seed, 0, "heads"))}
    describe_parameters("guard", tree, started.mesh)
    held = _held_out(settings, categories, model.config, rows, started.mesh)

    def evaluate(trained: dict) -> dict[str, float]:
        whole = with_backbone(base, trained | {"guard": _unweighted(trained["guard"], weights)})
        return held.numbers(whole, held.thresholds(whole))

    batches = inputs.batches(rows["data"], settings.data, settings.seed, started.mesh)
    if joint:
        pairs = inputs.batches(rows["pairs"], pair_data(settings), settings.seed + 1, started.mesh)
        batches = loader.MultiStream(guard=batches, pairs=pairs)
    tree, chosen = train(
        "guard",
        settings,
        started,
        tree,
        batches,
        objective(model.config, settings, weights).loss,
        show=("loss", "severity_accuracy", "category_accuracy") + (("reward_accuracy", "cost_sign_accuracy") if joint else ()),
        base=base,
        evaluate=evaluate,
    )
    tree |= {"guard": _unweighted(tree["guard"], weights)}
    trained, exported = optimizers.trainable(settings.optimizer, tree), tree
    if not joint and "backbone" in tree and model.heads and not any(jax.tree.leaves(trained["backbone"])):
        exported = tree | {"heads": model.heads}
    result = last_numbers(started) | chosen | {"rows": len(rows["data"].rows)} | counts
    about = _about(settings, rows["data"])
    uncalibrated = about | held_out.uncalibrated(settings)
    export_run(started, PRODUCT, model.config, exported, base=model.path, result=result, guard=uncalibrated)
    complete_tree = with_backbone(base, tree)
    thresholds = held.thresholds(complete_tree)
    rate = settings.false_positive_rate if settings.calibration else None
    result |= {f"threshold.{part}": value for part, value in thresholds.items()}
    finish(started, PRODUCT, result, guard=about | {"thresholds": thresholds, "false_positive_rate": rate})
    return finish(started, PRODUCT, result | held.numbers(complete_tree, thresholds))


def complete(run: Unfinished) -> Unfinished:
    """An unfinished guard, as one whose thresholds are not set: its unweighted heads, and what guard.json says of them.

    Runs of other stages come back as they are.
    """
    settings = run.settings
    if not isinstance(settings, GuardConfig):
        return run
    rows = prepare(settings, settings.data, checkpoints.load_shape(settings.init, settings.model, settings.data.chat_template))
    unset = held_out.uncalibrated(settings)
    heads = _unweighted(run.tree["guard"], _weights(rows, settings.balance))
    return run._replace(tree=run.tree | {"guard": heads}, guard=_about(settings, rows) | unset | hub.origin(settings.init))


def _rows(settings: GuardConfig, shape: Pretrained) -> dict[str, loader.Prepared]:
    """All that this run reads, by setting: opened and checked before any weights."""
    rows, pairs = {"data": prepare(settings, settings.data, shape)}, settings.pairs
    for name, path, split in (
        ("calibration", settings.calibration, settings.calibration_split),
        ("evaluation", settings.evaluation, settings.evaluation_split),
    ):
        if path:
            rows[name] = prepare(settings, inputs.elsewhere(settings.data, path, split), shape)
            inputs.check_held_out(f"config.{name}", rows[name], rows["data"])
    if pairs.path:
        rows["pairs"] = inputs.prepare("pairs", pair_data(settings), shape, sign=pairs.sign)
    if pairs.path and pairs.evaluation:
        data = inputs.elsewhere(pair_data(settings), pairs.evaluation, pairs.evaluation_split)
        rows["pairs.evaluation"] = inputs.prepare("pairs", data, shape, sign=pairs.sign)
        inputs.check_held_out("config.pairs.evaluation", rows["pairs.evaluation"], rows["pairs"])
    return rows


def prepare(settings: GuardConfig, data: DataConfig, model: Pretrained) -> loader.Prepared:
    """The items of the wanted parts; says what was left out and why.

    Raises:
        UserError: as `inputs.prepare`, or no row has labels.
    """
    categories = taxonomies.categories(settings.taxonomy)
    examples = sources.load_examples(data)
    items_of_rows, drops = guard_rows.expand(examples, categories, settings.parts)
    if not items_of_rows.items:
        raise UserError(f"{data.path}: no row has labels for a guard ({sources.describe_failure(drops)})")

    def fit(items: guard_rows.GuardExamples) -> loader.Prepared:
        labels = [item.labels for item in items.items]
        return loader.fit("guard", items, model.processor, data, labels=labels, categories=categories)

    rows = fit(items_of_rows)
    inputs.say_merged(rows)
    lost = [drop for drop in rows.dropped if items_of_rows.items[drop.row].side is not None]
    if lost:
        drops = drops + Counter(drop.reason for drop in lost)
        rows = fit(guard_rows.questions_alone(items_of_rows, {drop.row for drop in lost}))
    if rows.room is not None:
        inputs.check_pictures(model, rows.codec.reader)
    inputs.check_prompt_suffix(model, rows)
    judged = sum(labels != guard_rows.UNKNOWN for row in rows.rows for labels in rows.labels[row.row])
    hosts.say(
        f"{data.path}: {judged} questions and answers from {examples.source_rows} rows; "
        f"{sources.describe_drops(examples.drops + drops + rows.drops)}{sources.describe_sources(examples)}"
    )
    return rows


def pair_data(settings: GuardConfig) -> DataConfig:
    """The data section for the pairs of reward and cost heads."""
    pairs = settings.pairs
    return dataclasses.replace(inputs.elsewhere(settings.data, pairs.path, pairs.split), batch_size=pairs.batch_size)


def objective(config: VLMConfig, settings: GuardConfig, weights: tuple[np.ndarray, np.ndarray] | None = None) -> Objective:
    """The loss over questions and answers, and the guard's heads; with `config.pairs.path` over pairs and score heads too.

    Args:
        weights: class weights of severities and categories; None: ones.
    """
    count = len(taxonomies.categories(settings.taxonomy))
    weights = weights or tuple(np.ones((2, size), np.float32) for size in (taxonomies.LEVELS, count))
    heads = {"guard": jax.eval_shape(lambda: guard_heads.init(config, count, jax.random.key(0)))}
    judged = ("guard", settings.data)
    if not settings.pairs.path:
        return Objective(functools.partial(loss, config, weights, settings), (judged,), heads, count)
    heads |= {"heads": jax.eval_shape(lambda: score_heads.init(config, SCORES, jax.random.key(0)))}
    rows = (judged, ("pairs", pair_data(settings)))
    return Objective(functools.partial(joint_loss, config, weights, settings), rows, heads, count)


def loss(
    config: VLMConfig, weights: tuple[np.ndarray, np.ndarray], settings: GuardConfig, tree: Any, batch: GuardBatch
) -> masked.Loss:
    """L = L_severity + category_weight L_categories: two terms, each the mean over its own known entries."""
    severity_BQJ, category_BQA = scoring.logits(config, tree, batch)
    severity = _binary(severity_BQJ, batch.exceeds_BQJ, batch.exceeds_known_BQJ, weights[0])
    kinds = _binary(category_BQA, batch.category_BQA, batch.category_known_BQA, weights[1])
    metrics = {
        "severity_loss": (severity.sum, severity.count),
        "severity_accuracy": severity.metrics["accuracy"],
        "category_loss": (kinds.sum, kinds.count),
        "category_accuracy": kinds.metrics["accuracy"],
    }
    return masked.Loss(
        {"severity": severity.sum, "categories": settings.category_weight * kinds.sum},
        {"severity": severity.count, "categories": kinds.count},
        metrics,
    )


def _binary(*arrays: np.ndarray | jax.Array) -> masked.Loss:
    """Binary loss of logits, labels and which are known, [B, 2, A] each, with class weights."""
    return severity_losses.binary(*(x.reshape(-1, x.shape[-1]) for x in arrays))


def joint_loss(
    config: VLMConfig,
    weights: tuple[np.ndarray, np.ndarray],
    settings: GuardConfig,
    tree: Any,
    batch: tuple[GuardBatch, PairBatch],
) -> masked.Loss:
    """L = L_guard + pairs.coef (L_RM + L_CM): three heads on one backbone, each with rows of its own."""
    judged = loss(config, weights, settings, tree, batch[0])
    scored = scores.loss(config, settings.pairs, tree, batch[1])
    weighted = {name: settings.pairs.coef * total for name, total in scored.sum.items()}
    return masked.Loss(judged.sum | weighted, judged.count | scored.count, judged.metrics | scored.metrics)


def judge(settings: GuardConfig, model: Pretrained, tree: Any, mesh: Mesh, path: str) -> held_out.Judged:
    """Every question and answer of the rows of a path, in order."""
    rows = prepare(settings, dataclasses.replace(settings.data, path=path), model)
    return held_out.judge(held_out.jit_logits(model.config, mesh), tree, rows, settings.data, mesh)


def _held_out(
    settings: GuardConfig, categories: tuple[str, ...], config: VLMConfig, rows: dict[str, loader.Prepared], mesh: Mesh
) -> held_out.HeldOut:
    """The rows of `_rows` that nothing is learned from."""
    pairs, logits = None, held_out.jit_logits(config, mesh, settings.microbatches)
    if "pairs.evaluation" in rows:
        data = pair_data(settings)
        pairs = scores.held_out(config, settings.pairs, None, rows["pairs.evaluation"], data, mesh, settings.microbatches)
    return held_out.HeldOut(settings, categories, rows.get("calibration"), rows.get("evaluation"), pairs, logits, mesh)


def _start_heads(
    config: VLMConfig, rows: loader.Prepared, weights: tuple[np.ndarray, np.ndarray], key: jax.Array
) -> guard_heads.Heads:
    """Fresh heads whose biases are the log-odds of the rows, as weighted: training has only to tell one row from another."""
    heads, (exceeds, known, category, category_known) = guard_heads.init(config, len(rows.categories), key), _labels(rows)
    odds = severity_losses.log_odds(exceeds, known, weights[0]), severity_losses.log_odds(category, category_known, weights[1])
    return {name: heads[name] | {"bias": jax.numpy.asarray(bias)} for name, bias in zip(("severity", "categories"), odds)}


def _weights(rows: loader.Prepared, balance: bool) -> tuple[np.ndarray, np.ndarray]:
    """Class weights of severities and categories; 1 without `balance`."""
    exceeds, known, category, category_known = _labels(rows)
    if balance:
        return severity_losses.balance(exceeds, known), severity_losses.balance(category, category_known)
    return tuple(np.ones((2, array.shape[1]), np.float32) for array in (exceeds, category))


def _labels(rows: loader.Prepared) -> list[np.ndarray]:
    """`guard_rows.arrays` of all rows, questions and answers alike."""
    arrays = guard_rows.arrays([rows.labels[row.row] for row in rows.rows], rows.categories)
    return [array.reshape(-1, array.shape[-1]) for array in arrays]


def _unweighted(heads: guard_heads.Heads, weights: tuple[np.ndarray, np.ndarray]) -> guard_heads.Heads:
    """Heads whose probabilities are those of the data: the weights moved the biases, and this moves them back."""
    return {
        name: head | {"bias": head["bias"] - severity_losses.shift(weight)}
        for (name, head), weight in zip((("severity", heads["severity"]), ("categories", heads["categories"])), weights)
    }


def _about(settings: GuardConfig, rows: loader.Prepared) -> dict[str, Any]:
    """For guard.json, all but the thresholds and the rate that they were set for."""
    return {
        "taxonomy": settings.taxonomy,
        "categories": list(rows.categories),
        "severities": list(taxonomies.SEVERITIES),
        "template": scoring.template_hash(rows.codec),
        "conversation": scoring.conversation_hash(rows.codec),
        "max_pixels": settings.data.max_pixels,
        "system_prompt": settings.data.system_prompt,
    }
