"""Losses of several terms: each term is a mean over its own labelled entries of the whole batch, whatever the microbatches."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srlhfv_jax.batches import GuardBatch, PairBatch
from srlhfv_jax.guard import scoring, train as guard
from srlhfv_jax.supervised import scores
from srlhfv_jax.training import step

B, D, A = 8, 4, 3
PAIRS = SimpleNamespace(score_l2=1e-3, sign_weight=0.7, coef=0.6)
JUDGED = SimpleNamespace(category_weight=0.8, pairs=PAIRS)
CLASS_WEIGHTS = (np.array([[0.6, 0.7, 0.9], [2.1, 1.7, 1.3]], np.float32),) * 2


@pytest.fixture(autouse=True)
def linear_model(monkeypatch):
    """In place of the forward passes: heads on what the batch carries as its tokens."""

    def scored(config, tree, batch):
        return {name: batch.tokens_BST @ kernel_D for name, kernel_D in tree["heads"].items()}

    def judged(config, tree, batch):
        return tuple(batch.tokens_BT @ kernel_AD.T for kernel_AD in tree["guard"])

    monkeypatch.setattr(scores, "_scores", scored)
    monkeypatch.setattr(scoring, "logits", judged)


def tree_of(rng):
    kernels = {name: jnp.asarray(rng.normal(size=D), jnp.float32) for name in ("reward", "cost")}
    return {"heads": kernels, "guard": tuple(jnp.asarray(rng.normal(size=(A, D)), jnp.float32) for _ in range(2))}


def pairs_of(rng, labelled):
    """Pairs of which this share has each label; preferences of fractional weight."""

    def weight():
        return jnp.asarray(rng.choice([0.3, 1.0], B) * (rng.random(B) < labelled), jnp.float32)

    sign_BS = rng.choice([-1.0, 0.4], (B, 2)) * (rng.random((B, 2)) < labelled)
    side_2B = jnp.asarray(rng.integers(0, 2, (2, B)), jnp.int32)
    x = jnp.asarray(rng.normal(size=(B, 2, D)), jnp.float32)
    return PairBatch(x, None, None, None, None, side_2B[0], weight(), side_2B[1], weight(), jnp.asarray(sign_BS, jnp.float32))


def judged_of(rng, labelled):
    labels = [jnp.asarray(rng.random((B, 2, A)) < share) for share in (0.5, labelled, 0.5, labelled**2)]
    return GuardBatch(jnp.asarray(rng.normal(size=(B, 2, D)), jnp.float32), None, None, None, None, *labels)


SCORES = functools.partial(scores.loss, None, PAIRS)
LOSSES = {
    "scores": SCORES,
    "guard": functools.partial(guard.loss, None, CLASS_WEIGHTS, JUDGED),
    "joint": functools.partial(guard.joint_loss, None, CLASS_WEIGHTS, JUDGED),
}
accumulate = jax.jit(step.accumulate, static_argnums=(0, 3))


@pytest.mark.parametrize("labelled", [1.0, 0.6, 0.2])
@pytest.mark.parametrize("kind", LOSSES)
def test_microbatches_change_no_gradient_whichever_rows_are_labelled(kind, labelled):
    rng = np.random.default_rng(round(10 * labelled))
    tree, pairs, judged = tree_of(rng), pairs_of(rng, labelled), judged_of(rng, labelled)
    batch = {"scores": pairs, "guard": judged, "joint": (judged, pairs)}[kind]
    whole, metrics, _ = accumulate(LOSSES[kind], tree, batch, 1)
    assert any(jnp.any(leaf) for leaf in jax.tree.leaves(whole))
    for parts in (2, 4, 8):
        grads, numbers, _ = accumulate(LOSSES[kind], tree, batch, parts)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), grads, whole)
        np.testing.assert_allclose(numbers["loss"][0] / numbers["loss"][1], metrics["loss"][0] / metrics["loss"][1], rtol=1e-6)


def test_a_term_is_the_mean_of_its_own_loss_over_its_own_rows():
    rng = np.random.default_rng(3)
    tree, batch, heads = tree_of(rng), pairs_of(rng, 0.5), ("reward", "cost")
    alone = [SCORES({"heads": {name: tree["heads"][name]}}, batch).metrics[f"{name}_loss"] for name in heads]
    _, metrics, _ = accumulate(SCORES, tree, batch, 4)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], sum(total / count for total, count in alone), rtol=1e-6)


def test_counting_a_batch_ahead_costs_no_forward_pass():
    """Compiled, a step in parts multiplies as often as the same step whole."""
    rng = np.random.default_rng(5)
    tree, batch = tree_of(rng), pairs_of(rng, 0.5)

    def products(parts):
        return accumulate.lower(SCORES, tree, batch, parts).compile().as_text().count(" dot(")

    assert products(4) == products(1) > 0
