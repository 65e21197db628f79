"""Reward and cost heads on one backbone, trained together from dual preferences; or one of them, on a backbone of its own.

L = L_RM + L_CM      (losses/reward.py, losses/cost.py); prompt and image pass once per pair, both responses in one sequence with it
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from srlhfv_jax.batches import PairBatch
from srlhfv_jax.config import DataConfig, PairsConfig, ScoresConfig
from srlhfv_jax.data import loader
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation import pair_accuracy
from srlhfv_jax.evaluation.scoring import LABELS, jit_scores, score_pairs
from srlhfv_jax.hf.card import SIGNS, Product
from srlhfv_jax.hf.load import Pretrained
from srlhfv_jax.losses import cost, masked, reward
from srlhfv_jax.models import score_heads, sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.models.trees import with_backbone
from srlhfv_jax.parallel import hosts, rules
from srlhfv_jax.runs import checkpoints, inputs, labelled
from srlhfv_jax.runs.run import describe_parameters, export_run, finish, last_numbers, start
from srlhfv_jax.supervised import train as supervised
from srlhfv_jax.training import state as states

PRODUCT = Product("scores", f"A backbone with score heads (score_heads.py loads them). {SIGNS}")


def run(settings: ScoresConfig, workdir: Path) -> dict[str, float]:
    """Train and export backbone and heads to WORKDIR/export; returns the last step's numbers, and held-out ones if rows are
    given.

    Held-out numbers have the names of `pair_accuracy.model_metrics`: `reward_model.pair_accuracy`, `cost_model.sign_accuracy`,
    ...
    """
    if not settings.heads:
        raise UserError("config.heads is empty: expected ('reward', 'cost') or one of them")
    started = start(settings, workdir)
    hosts.check_batch(settings.data.batch_size, started.mesh, "a batch of")
    checkpoints.check_checkpoint(settings.init, "config.init")
    shape = checkpoints.load_shape(settings.init, settings.model, settings.data.chat_template)
    rows, held = inputs.prepare("pairs", settings.data, shape, sign=settings.sign), None
    held_data = inputs.elsewhere(settings.data, settings.evaluation, settings.evaluation_split)
    if settings.evaluation:
        held = inputs.prepare("pairs", held_data, shape, sign=settings.sign)
        inputs.check_held_out("config.evaluation", held, rows)
    counts = labelled.check(settings.data.path, labelled.of_pairs(rows, settings.heads, sign_weight=settings.sign_weight))
    model = checkpoints.load_init(settings, started.mesh)
    inputs.check_prompt_suffix(model, *filter(None, (rows, held)))
    tree, base = checkpoints.trained_part(settings.lora, model, started.mesh, states.key(settings.seed, 0, "adapter"))
    tree |= {"heads": start_heads(model, settings.heads, started.mesh, states.key(settings.seed, 0, "heads"))}
    describe_parameters("scorer", tree, started.mesh)
    evaluate = None
    if held is not None:
        evaluate = held_out(model.config, settings, base, held, held_data, started.mesh, settings.microbatches)
    tree, chosen = supervised.train(
        "scores",
        settings,
        started,
        tree,
        inputs.batches(rows, settings.data, settings.seed, started.mesh),
        objective(model.config, settings).loss,
        show=("loss", "reward_accuracy", "cost_sign_accuracy"),
        base=base,
        evaluate=evaluate,
    )
    result = last_numbers(started) | chosen | {"rows": len(rows.rows)} | counts
    export_run(started, PRODUCT, model.config, tree, base=model.path, about={"labels": settings.sign}, result=result)
    if evaluate is not None:
        result |= evaluate(tree)
    return finish(started, PRODUCT, result)


def objective(config: VLMConfig, settings: ScoresConfig) -> supervised.Objective:
    """The joint loss over pairs, and score heads."""
    heads = jax.eval_shape(lambda: score_heads.init(config, settings.heads, jax.random.key(0)))
    return supervised.Objective(functools.partial(loss, config, settings), (("pairs", settings.data),), {"heads": heads})


def start_heads(model: Pretrained, names: tuple[str, ...], mesh, key: jax.Array) -> dict:
    """The score heads of a checkpoint, fresh ones where it has none."""
    kept = {name: model.heads[name] for name in names if name in model.heads}
    return rules.replicate(score_heads.init(model.config, names, key) | kept, mesh)


def loss(config: VLMConfig, settings: ScoresConfig | PairsConfig, tree, batch: PairBatch) -> masked.Loss:
    """The joint loss, a term for each head: its mean is over its own labelled rows, so that unlabelled rows dilute neither."""
    return _terms(settings, _scores(config, tree, batch), batch._asdict())


def _terms(settings: ScoresConfig | PairsConfig, scored_BS: Mapping[str, Any], labels: Mapping[str, Any]) -> masked.Loss:
    """The loss of scores of pairs, {head: [B, 2]}; `labels` are the fields LABELS of a PairBatch."""
    terms, metrics = {}, {}
    if "reward" in scored_BS:
        chosen_B, rejected_B = _ordered(scored_BS["reward"], labels["chosen_B"])
        terms["reward"] = part = reward.reward(chosen_B, rejected_B, labels["helpful_weight_B"], score_l2=settings.score_l2)
        metrics |= {"reward_loss": (part.sum, part.count), "reward_accuracy": part.metrics["pair_accuracy"]}
    if "cost" in scored_BS:
        safer_B, costlier_B = _ordered(scored_BS["cost"], labels["safer_B"])
        terms["cost"] = part = cost.cost(
            costlier_B,
            safer_B,
            labels["safety_weight_B"],
            scored_BS["cost"],
            labels["sign_BS"],
            sign_weight=settings.sign_weight,
            score_l2=settings.score_l2,
        )
        metrics |= {
            "cost_loss": (part.sum, part.count),
            "cost_accuracy": part.metrics["pair_accuracy"],
            "cost_sign_accuracy": part.metrics["sign_accuracy"],
        }
    return masked.Loss(
        {name: part.sum for name, part in terms.items()}, {name: part.count for name, part in terms.items()}, metrics
    )


def held_out(
    config: VLMConfig,
    settings: ScoresConfig | PairsConfig,
    base: dict | None,
    rows: loader.Prepared,
    data: DataConfig,
    mesh,
    microbatches: int,
) -> supervised.Evaluate:
    """Accuracies of a trained tree on held-out pairs, by the labels in the rows (`pair_accuracy.model_metrics`); `evaluation.loss`, and
    `evaluation.HEAD_loss` of each head that has labels.

    Args:
        base: the frozen backbone under a tree that holds an adapter.
    """
    score = jit_scores(config, mesh, microbatches=microbatches)

    def evaluate(tree: dict) -> dict[str, float]:
        scores, labels = score_pairs(score, with_backbone(base, tree), rows, data, mesh)
        numbers = pair_accuracy.model_metrics(scores.get("reward"), scores.get("cost"), *(labels[name] for name in LABELS))
        loss = _terms(settings, scores, labels)
        means = {name: float(total / loss.count[name]) for name, total in loss.sum.items() if loss.count[name] > 0}
        losses = {f"evaluation.{name}_loss": mean for name, mean in means.items()}
        return numbers | losses | ({"evaluation.loss": sum(means.values())} if means else {})

    return evaluate


def _scores(config: VLMConfig, tree, batch: PairBatch):
    return sequences.pair_scores(config, tree, batch, sequences.encode(config, tree, batch.images))


def _ordered(score_BS, side_B):
    """(the score of the named side, the score of the other)."""
    named = jnp.take_along_axis(score_BS, side_B[:, None], axis=1)[:, 0]
    return named, jnp.take_along_axis(score_BS, 1 - side_B[:, None], axis=1)[:, 0]
