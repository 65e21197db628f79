"""Tokens that count: masks by hand, their keys, what a model says of them, and the stage."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_pairs
import tiny_vlm as tiny
from tiny_stages import numbers as lines, rows, settings, supervised_and_scorer

from srlhfv_jax.batches import PreferenceBatch
from srlhfv_jax.config import PreferenceConfig
from srlhfv_jax.data import collate
from srlhfv_jax.data.rows import Example
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.errors import UserError
from srlhfv_jax.models import score_heads, sequences
from srlhfv_jax.preference import numbers, run as preference, tokens

VALUES = np.array([0.5, -0.25, 0.75, 0.25]), np.array([-1.5, 0.25, 0.125])


def test_the_winner_keeps_what_is_above_the_baseline_and_the_loser_what_is_below():
    first, second = tokens.kept(VALUES, 0, 0.25)
    assert first.tolist() == [True, False, True, False] and second.tolist() == [True, False, True]
    first, second = tokens.kept(VALUES, 1, 0.0)
    assert first.tolist() == [False, True, False, False] and second.tolist() == [False, True, True]


IDS = [np.array(ids, np.int32) for ids in ([5, 6], [7, 8, 9, 10], [11, 12, 13])]
ROW = Encoded(0, IDS[0], np.arange(2), tuple(IDS[1:]), Example((), "", ("", "")), (), ())


def test_tokens_that_do_not_count_are_part_of_an_answers_key_and_all_are_the_answer():
    plain, ones = numbers.keys(ROW), (np.ones(4, bool), np.ones(3, bool))
    assert numbers.keys(ROW._replace(kept=ones)) == plain
    first, second = numbers.keys(ROW._replace(kept=(np.array([True, False, True, True]), ones[1])))
    assert first != plain[0] and second == plain[1]
    assert numbers.keys(ROW._replace(kept=(np.array([True, True, False, True]), ones[1])))[0] not in (first, plain[0])


def test_masks_are_padded_as_answers_are():
    batch = collate.preference(
        [ROW._replace(kept=tokens.kept(VALUES, 0, 0.25))], None, collate.Frame(3, 5, 0), [collate.NO_TERMS]
    )
    np.testing.assert_array_equal(batch.keep_BSR[0], [[1, 0, 1, 0, 0], [1, 0, 1, 0, 0]])
    assert collate.preference([ROW], None, collate.Frame(3, 5, 0), [collate.NO_TERMS]).keep_BSR is None


def test_numbers_of_tokens_are_read_as_they_were_written_and_a_changed_length_is_seen(tmp_path, capfd):
    kept = {bytes([number]) * numbers.KEY: np.arange(number + 1, dtype=np.float32) / 8 for number in range(3)}
    numbers.write(tmp_path, "weights", kept)
    told = numbers.read(tmp_path, "weights")
    assert told.keys() == kept.keys() and all(np.array_equal(told[key], kept[key]) for key in kept)
    (part,) = tmp_path.rglob("*.npz")
    with np.load(part) as file:
        arrays = dict(file)
    np.savez(part, **(arrays | {"lengths": arrays["lengths"][::-1]}))
    assert numbers.read(tmp_path, "weights") == {} and "its checksum is another one" in "".join(capfd.readouterr())


B, R = 4, 5
LENGTHS = np.array([[5, 2], [3, 4], [1, 5], [4, 3]])


def model():
    tree = {"backbone": tiny.backbone()}
    pairs = tiny_pairs.pairs(tiny.prompts(B), LENGTHS, R, words=(4, tiny.VOCAB), pad=tiny.PAD)
    zero_B = jnp.zeros(B)
    terms = (jnp.ones(B), jnp.array([0, 1, 1, 0]), jnp.full((B, 2), 0.5), jnp.full((B, 2), -12.5))
    return tree, PreferenceBatch(*pairs[:5], *terms, jnp.full(B, 0.3), zero_B, zero_B, zero_B, jnp.full(B, 0.25))


def value_and_gradient(config, tree, batch):
    def mean(tree):
        loss = preference.loss(tiny.CONFIG, config, tree, batch)
        return loss.sum / loss.count

    return jax.jit(jax.value_and_grad(mean))(tree)


@pytest.fixture(scope="module")
def plain():
    return value_and_gradient(settings(PreferenceConfig, "preference", init="x"), *model())


def test_where_all_tokens_count_it_is_dpo_to_the_last_bit(plain):
    tree, batch = model()
    config = settings(PreferenceConfig, "preference", init="x")
    for keep_BSR in (jnp.ones((B, 2, R), bool), batch.response_mask_BSR):
        jax.tree.map(np.testing.assert_array_equal, value_and_gradient(config, tree, batch._replace(keep_BSR=keep_BSR)), plain)


def test_where_none_counts_h_is_that_of_nothing_and_everything_is_finite(plain):
    tree, batch = model()
    nothing = batch._replace(keep_BSR=jnp.zeros((B, 2, R), bool), reference_BS=jnp.zeros((B, 2)))
    value, gradient = value_and_gradient(settings(PreferenceConfig, "preference", init="x"), tree, nothing)
    assert float(value) == pytest.approx(np.log(2), rel=1e-6) and float(plain[0]) != float(value)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_value_is_read_after_its_token():
    """After the last one it is the score of the whole answer; tokens behind it change nothing."""
    tree, batch = model()
    tree |= {"heads": score_heads.init(tiny.CONFIG, ("reward",), jax.random.key(5))}
    features = sequences.encode(tiny.CONFIG, tree, batch.images)
    each = sequences.pair_token_scores(tiny.CONFIG, tree, batch, features)["reward"]
    whole = sequences.pair_scores(tiny.CONFIG, tree, batch, features)["reward"]
    np.testing.assert_allclose(jnp.take_along_axis(each, jnp.asarray(LENGTHS)[:, :, None] - 1, axis=2)[..., 0], whole, atol=2e-5)
    P = batch.tokens_BST.shape[2] - R
    changed = batch._replace(tokens_BST=batch.tokens_BST.at[:, :, P + 2].add(1))
    other = sequences.pair_token_scores(tiny.CONFIG, tree, changed, features)["reward"]
    np.testing.assert_array_equal(other[:, :, :2], each[:, :, :2])
    assert np.all(np.asarray(other != each)[:, :, 2][LENGTHS > 2])


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    """A supervised policy, a scorer, and pairs of the embedded task."""
    return supervised_and_scorer(tmp_path_factory.mktemp("task"))


def of(task, **changes) -> PreferenceConfig:
    given = rows(task) | {"data.path": str(task / "pairs.parquet"), "data.batch_size": 4, "optimizer.learning_rate": 1e-3}
    masks = {"init": str(task / "sft"), "tokens.scorer": str(task / "scores"), "reference_cache": str(task / "numbers")}
    return settings(PreferenceConfig, "preference", **(given | masks | changes))


def computed(said: str) -> dict[str, int]:
    """How many numbers of each kind a model had to be asked for."""
    return {line.split()[0]: int(line.split()[-3]) for line in said.splitlines() if "to compute" in line}


@pytest.mark.slow
def test_training_starts_at_h_of_zero_and_another_baseline_asks_for_log_probabilities_alone(task, tmp_path, capfd):
    result = preference.run(of(task), tmp_path / "run")
    said = "".join(capfd.readouterr())
    first = next(line for line in lines(tmp_path / "run") if "loss" in line)
    assert first["loss"] == pytest.approx(np.log(2), abs=1e-6) and computed(said)["token_reward"] == 48
    assert "self-test passed" in said and np.isfinite(result["loss"]) and 0 < result["rows"] <= 24
    if result["rows"] < 24:
        assert f"{24 - result['rows']} pairs dropped: no_token_kept" in said
    preference.run(of(task, steps=0, **{"tokens.baseline": 0.01}), tmp_path / "other")
    again = computed("".join(capfd.readouterr()))
    assert again["token_reward"] == 0 and 0 < again["log_probability"] <= 48
    preference.run(of(task, steps=0, **{"tokens.head": "cost"}), tmp_path / "cost")
    assert computed("".join(capfd.readouterr()))["token_cost"] == 48


def test_a_baseline_that_no_pair_has_a_token_on_both_sides_of_is_refused_with_the_range(task, tmp_path):
    with pytest.raises(
        UserError, match="config.tokens.baseline 1000 leaves no pair a token of both answers: values of tokens lie from"
    ):
        preference.run(of(task, **{"tokens.baseline": 1000.0}), tmp_path / "run")
    with pytest.raises(UserError, match="has no reward head"):
        preference.run(of(task, **{"tokens.scorer": str(task / "sft")}), tmp_path / "run")
