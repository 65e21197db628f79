"""Log-probabilities of two answers to one prompt: in one sequence as in two, and neither answer sees the other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_families
import tiny_hf
import tiny_pairs
import tiny_vlm as tiny

from srlhfv_jax.batches import PairBatch, SupervisedBatch
from srlhfv_jax.config import LoraConfig
from srlhfv_jax.hf import load_pretrained
from srlhfv_jax.models import lora, sequences, vlm
from srlhfv_jax.models.vlm import Features
from srlhfv_jax.parallel import hosts, microbatches, rules

B, R = 6, 7
LOCAL = dataclasses.replace(tiny.CONFIG.text, window=4, local_layers=(1,))
CONFIGS = {
    "scanned": tiny.CONFIG,
    "unrolled, computed again": dataclasses.replace(tiny.CONFIG, scan_unroll=0, remat="layer"),
    "by the kernel": dataclasses.replace(tiny.CONFIG, attention="interpret"),
}
FURTHER = {
    "in chunks": dataclasses.replace(tiny.CONFIG, logp_chunk=4),
    "in bfloat16": dataclasses.replace(tiny.CONFIG, dtype="bfloat16"),
}
APART = {
    "local layers": dataclasses.replace(tiny.CONFIG, text=LOCAL),
    "activated adapters": dataclasses.replace(tiny.CONFIG, activation=(7, 9)),
}
WITH_WINDOWS = {"gemma3", "gemma3_text", "mistral with a window"}


def pairs(seed: int = 0, rows: int = B, response: int = R, turned: bool = False) -> PairBatch:
    """Answers of every length from one token to all; turned: the two sides' lengths changed over."""
    length_BS = np.stack([1 + np.arange(rows) % response, response - np.arange(rows) % response], axis=1)
    length_BS = length_BS[:, ::-1] if turned else length_BS
    return tiny_pairs.pairs(tiny.prompts(rows), length_BS, response, words=(4, tiny.VOCAB), pad=tiny.PAD, seed=seed)


def weights(batch: PairBatch) -> jax.Array:
    """Random weights of the log-probs in a mean over rows."""
    shape = batch.response_mask_BSR.shape
    return jnp.asarray(np.random.default_rng(1).normal(size=shape) / shape[0], jnp.float32)


def one_side(batch: PairBatch, side: int) -> SupervisedBatch:
    return SupervisedBatch(*(x_BS[:, side] for x_BS in batch[:4]), None)


def alone(config, tree, rows: SupervisedBatch, features: Features | None) -> jax.Array:
    return sequences.response_logp(config, tree, rows, features)[0]


logp_of = jax.jit(sequences.pair_logp, static_argnums=0)
features_of = jax.jit(sequences.encode, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def with_gradient(way, config, params, features, batch, weight):
    """(log-probs, the gradient of their weighted sum by the parameters and by what the tower gave)"""

    def total(params, tower):
        given = None if features is None else features._replace(tower_BNE=tower)
        logp = way(config, {"backbone": params}, batch, given)
        return jnp.sum(weight * logp), logp

    gradient, logp = jax.grad(total, argnums=(0, 1), has_aux=True)(params, features and features.tower_BNE)
    return logp, gradient


def each_alone(config, params, features, batch: PairBatch, weight_BSR):
    """`with_gradient` of each side as a batch of its own."""
    sides = [with_gradient(alone, config, params, features, one_side(batch, side), weight_BSR[:, side]) for side in (0, 1)]
    (first_BR, ahead), (second_BR, behind) = sides
    return jnp.stack([first_BR, second_BR], axis=1), jax.tree.map(jnp.add, ahead, behind)


def check_equal(ours, theirs, batch: PairBatch, within: float = 2e-6, gradients: float = 4e-5) -> None:
    """Log-probs, 0 off the mask, and gradients."""
    (logp_BSR, ahead), (expected_BSR, behind) = ours, theirs
    mask_BSR = np.asarray(batch.response_mask_BSR)
    assert logp_BSR.dtype == jnp.float32 and logp_BSR.shape == mask_BSR.shape
    assert np.all(np.asarray(logp_BSR)[~mask_BSR] == 0) and np.std(np.asarray(expected_BSR)[mask_BSR]) > 0.5
    np.testing.assert_allclose(logp_BSR, expected_BSR, atol=within, rtol=0)
    leaves = [jax.tree.leaves(tree) for tree in (ahead, behind)]
    assert max(np.abs(leaf).max() for leaf in leaves[1]) > 0.5
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, atol=gradients, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_one_sequence_gives_two_answers_the_log_probs_of_two_sequences(name):
    config, batch = CONFIGS[name], pairs()
    params = tiny.backbone(config=config)
    features = features_of(config, {"backbone": params}, batch.images)
    given = config, params, features, batch, weights(batch)
    check_equal(*(with_gradient(way, *given) for way in (sequences.pair_logp, sequences.logp_apart)), batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny_families.VARIANTS)
def test_both_answers_have_the_log_probs_that_each_has_alone_in_every_family(name, tmp_path):
    """Whatever the family makes of positions, pictures and windows."""
    tiny_hf.save(tmp_path, tiny_families.VARIANTS[name])
    pretrained = load_pretrained(tmp_path)
    if name == "qwen2":  # transformers reads every tokenizer beside this model as Qwen2's own
        pretrained = pretrained._replace(processor=tiny_hf.processor("qwen2"))
    config, params = pretrained.config, pretrained.params
    assert bool(config.text.local_layers) == (name in WITH_WINDOWS)
    batch = tiny_pairs.pairs(tiny_families.batch(pretrained), [[5, 3], [1, 4], [2, 5]], 5, words=(40, tiny_hf.VOCAB), seed=5)
    features = features_of(config, {"backbone": params}, batch.images)
    given = config, params, features, batch, weights(batch)
    check_equal(with_gradient(sequences.pair_logp, *given), each_alone(*given), batch)


def adapted(config) -> dict:
    """A backbone with an adapter that adds something."""
    base = tiny.backbone(config=config)
    settings = LoraConfig(rank=3, alpha=4.5, targets=("text/layers/.*_proj",), int8=False, activated=True)
    leaves, structure = jax.tree.flatten(lora.init(settings, base, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(5), len(leaves))
    moved = [leaf + 0.1 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys)]
    return lora.overlay(base, structure.unflatten(moved))


def test_activated_adapters_give_the_log_probs_of_each_answer_alone():
    config, batch = APART["activated adapters"], pairs()
    params = adapted(config)
    features = features_of(config, {"backbone": params}, batch.images)
    given = config, params, features, batch, weights(batch)
    check_equal(with_gradient(sequences.pair_logp, *given), each_alone(*given), batch)


@pytest.mark.parametrize("name", CONFIGS | FURTHER | APART)
def test_an_answer_does_not_move_the_log_probs_of_the_other_by_a_bit(name):
    """Neither its tokens nor its length."""
    config, batch = (CONFIGS | FURTHER | APART)[name], pairs()
    tree = {"backbone": tiny.backbone(config=config)}
    features = features_of(config, tree, batch.images)
    before_BSR = np.asarray(logp_of(config, tree, batch, features))
    for other in (pairs(1), pairs(1, turned=True)):
        for side in (0, 1):
            changed = (x.at[:, 1 - side].set(y[:, 1 - side]) for x, y in zip(batch[:4], other[:4]))
            after_BSR = np.asarray(logp_of(config, tree, PairBatch(*changed, *batch[4:]), features))
            np.testing.assert_array_equal(before_BSR[:, side], after_BSR[:, side])
            assert np.all(before_BSR[:, 1 - side, 0] != after_BSR[:, 1 - side, 0])


def padded(batch: PairBatch, left: int, right: int) -> PairBatch:
    """More columns before the prompts and after the answers, as the tokenizer code makes them."""
    around = ((0, 0), (0, 0), (left, right))
    return batch._replace(
        tokens_BST=jnp.pad(batch.tokens_BST, around, constant_values=tiny.PAD),
        positions_BST=jnp.pad(batch.positions_BST, around, mode="edge"),
        mask_BST=jnp.pad(batch.mask_BST, around),
        response_mask_BSR=jnp.pad(batch.response_mask_BSR, ((0, 0), (0, 0), (0, right))),
    )


def test_padding_changes_nothing():
    batch, right = pairs(), 5
    longer, params = padded(batch, 3, right), tiny.backbone()
    features = features_of(tiny.CONFIG, {"backbone": params}, batch.images)
    weight_BSR = weights(batch)
    expected = with_gradient(sequences.pair_logp, tiny.CONFIG, params, features, batch, weight_BSR)
    wider_BSR = jnp.pad(weight_BSR, ((0, 0), (0, 0), (0, right)), constant_values=0.7)
    logp_BSR, gradient = with_gradient(sequences.pair_logp, tiny.CONFIG, params, features, longer, wider_BSR)
    assert np.all(logp_BSR[:, :, R:] == 0)
    check_equal((logp_BSR[:, :, :R], gradient), expected, batch)


def test_what_pads_are_called_changes_no_bit():
    batch, tree = pairs(), {"backbone": tiny.backbone()}
    features = features_of(tiny.CONFIG, tree, batch.images)
    named = batch._replace(tokens_BST=jnp.where(batch.mask_BST, batch.tokens_BST, tiny.EOS))
    assert np.any(named.tokens_BST != batch.tokens_BST)
    np.testing.assert_array_equal(*(logp_of(tiny.CONFIG, tree, one, features) for one in (batch, named)))


def test_chunks_change_nothing():
    batch, params = pairs(), tiny.backbone()
    features = features_of(tiny.CONFIG, {"backbone": params}, batch.images)
    given = params, features, batch, weights(batch)
    configs = FURTHER["in chunks"], tiny.CONFIG
    check_equal(*(with_gradient(sequences.pair_logp, config, *given) for config in configs), batch)


@pytest.mark.slow
def test_a_kernel_that_is_asked_by_both_answers_gives_the_same():
    """So long that the last layer, which is asked for what is read alone, does not leave its kernel."""
    batch, tree = pairs(rows=2, response=66), {"backbone": tiny.backbone()}
    features = features_of(tiny.CONFIG, tree, batch.images)
    config = dataclasses.replace(tiny.CONFIG, scan_unroll=0)
    kernel, xla = (logp_of(dataclasses.replace(config, attention=name), tree, batch, features) for name in ("interpret", "xla"))
    np.testing.assert_allclose(kernel, xla, atol=2e-5)


def test_bfloat16_gives_float32_log_probs_near_the_float32_ones():
    batch, tree = pairs(), {"backbone": tiny.backbone()}
    configs = tiny.CONFIG, FURTHER["in bfloat16"]
    exact, rough = (logp_of(config, tree, batch, features_of(config, tree, batch.images)) for config in configs)
    assert rough.dtype == jnp.float32 and np.any(exact != rough)
    np.testing.assert_allclose(rough, exact, atol=0.3)


def test_eight_devices_and_parts_of_a_batch_give_what_one_device_gives(eight_devices):
    batch, params = pairs(rows=8), tiny.backbone()
    features, weight_BSR = features_of(tiny.CONFIG, {"backbone": params}, batch.images), weights(batch)
    one = with_gradient(sequences.pair_logp, tiny.CONFIG, params, features, batch, weight_BSR)
    with jax.set_mesh(eight_devices):
        placed = rules.place(params, eight_devices), *hosts.global_batch((features, batch, weight_BSR), eight_devices)
        eight = with_gradient(in_parts, tiny.CONFIG, *placed)
    check_equal(hosts.to_host(eight), hosts.to_host(one), batch)


def in_parts(config, tree, batch: PairBatch, features: Features) -> jax.Array:
    return microbatches.over_rows(lambda part: sequences.pair_logp(config, tree, *part), (batch, features), 2)


@pytest.mark.parametrize("name, rows", [("scanned", B), *((name, 2 * B) for name in APART)])
def test_a_prompt_is_computed_once_where_both_answers_can_share_it(name, rows, monkeypatch):
    config, batch, apply, seen = (CONFIGS | APART)[name], pairs(), vlm.apply, []
    monkeypatch.setattr(vlm, "apply", lambda *given, **how: seen.append(given[2].shape[0]) or apply(*given, **how))
    tree = {"backbone": tiny.backbone()}
    features = features_of(config, tree, batch.images)
    jax.eval_shape(lambda tree: sequences.pair_logp(config, tree, batch, features), tree)
    assert seen[-1] == rows and seen[:-1] == ([B] if config.activation else [])
