"""Two answers to one prompt in one sequence score as in two, and neither sees the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pairs
import tiny_vlm as tiny

from srlhfv_jax.batches import PairBatch, SupervisedBatch
from srlhfv_jax.models import sequences, vlm

B, R = 6, 7
LOCAL = dataclasses.replace(tiny.CONFIG.text, window=4, local_layers=(1,))
CONFIGS = {
    "llava": tiny.CONFIG,
    "unrolled, computed again": dataclasses.replace(tiny.CONFIG, scan_unroll=0, remat="layer"),
    "by the kernel": dataclasses.replace(tiny.CONFIG, attention="interpret"),
    "with local layers": dataclasses.replace(tiny.CONFIG, text=LOCAL),
}


def pairs(seed: int = 0) -> PairBatch:
    """Answers of every length from one token to all R."""
    length_BS = np.stack([1 + np.arange(B) % R, R - np.arange(B) % R], axis=1)
    return tiny_pairs.pairs(tiny.prompts(B), length_BS, R, words=(4, tiny.VOCAB), pad=tiny.PAD, seed=seed)


def together(config, tree, batch: PairBatch):
    return sequences.pair_scores(config, tree, batch, sequences.encode(config, tree, batch.images))


def apart(config, tree, batch: PairBatch):
    def scores(side: int):
        rows = SupervisedBatch(*(x[:, side] for x in batch[:4]), batch.images)
        return sequences.end_scores(config, tree, rows, sequences.encode(config, tree, batch.images))

    return jax.tree.map(lambda *ends: jnp.stack(ends, axis=1), scores(0), scores(1))


@pytest.mark.parametrize("name", CONFIGS)
def test_one_sequence_scores_two_answers_as_two_sequences_do(name):
    """Gradients too."""
    config, batch, tree = CONFIGS[name], pairs(), tiny.scorer()
    weight_BS = jnp.asarray(np.random.default_rng(1).normal(size=(B, 2)), jnp.float32)

    def total(tree, way):
        found = way(config, tree, batch)
        return sum(jnp.sum(weight_BS * scores_BS) for scores_BS in found.values()), found

    run = jax.jit(jax.grad(total, has_aux=True), static_argnums=1)
    (ours, one), (theirs, other) = run(tree, together), run(tree, apart)
    assert one.keys() == {"reward", "cost"} and np.std(one["cost"]) > 0.3
    for a, b in zip(jax.tree.leaves((ours, one)), jax.tree.leaves((theirs, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-4)


def test_the_end_score_is_read_after_the_last_real_token_and_padding_changes_none():
    batch, tree = pairs(), tiny.scorer()
    features = sequences.encode(tiny.CONFIG, tree, batch.images)
    rows = SupervisedBatch(*(x[:, 1] for x in batch[:4]), batch.images)
    padded = rows._replace(**{name: jnp.pad(getattr(rows, name), ((0, 0), (0, 3))) for name in rows._fields[:4]})
    everywhere = sequences.response_scores(tiny.CONFIG, tree, rows, features)
    lengths_B = np.array(rows.response_mask_BR).sum(1)
    assert len(set(lengths_B)) > 1
    for one in (rows, padded):
        for name, score_B in sequences.end_scores(tiny.CONFIG, tree, one, features).items():
            np.testing.assert_allclose(score_B, everywhere[name][np.arange(B), lengths_B], atol=2e-5)


def test_an_answer_does_not_move_the_score_of_the_other():
    tree, batch, other = tiny.scorer(), pairs(0), pairs(1)
    for side in (0, 1):
        changed = batch._replace(tokens_BST=batch.tokens_BST.at[:, 1 - side].set(other.tokens_BST[:, 1 - side]))
        before, after = (together(tiny.CONFIG, tree, one)["reward"] for one in (batch, changed))
        np.testing.assert_array_equal(before[:, side], after[:, side])
        assert np.all(before[:, 1 - side] != after[:, 1 - side])


def test_a_prompt_is_computed_once_for_both(monkeypatch):
    batch, apply, seen = pairs(), vlm.apply, []
    monkeypatch.setattr(vlm, "apply", lambda *given, **how: seen.append(given[2].shape) or apply(*given, **how))
    jax.eval_shape(lambda tree: together(tiny.CONFIG, tree, batch), tiny.scorer())
    assert seen == [(B, batch.tokens_BST.shape[2] + R)]
