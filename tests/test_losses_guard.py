"""The guard's losses against numbers worked out by hand."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srlhfv_jax.cli import flags
from srlhfv_jax.config import GuardConfig
from srlhfv_jax.guard import scoring
from srlhfv_jax.losses import severity
from srlhfv_jax.models import guard_heads
from srlhfv_jax.parsing import parse
from srlhfv_jax.training import optimizer as optimizers

EVEN = jnp.ones((2, 3))


def test_the_ordinal_loss_is_the_mean_over_known_thresholds():
    # σ(log 3) = 3/4, σ(0) = 1/2, σ(-log 4) = 1/5. Row 0 is minor: yes, no, no. Row 1 is unsafe, its level unknown.
    logit = jnp.log(jnp.array([[3.0, 1.0, 0.25], [3.0, 1.0, 0.25]]))
    label = jnp.array([[True, False, False], [True, False, False]])
    known = jnp.array([[True, True, True], [True, False, False]])
    loss = severity.binary(logit, label, known, EVEN)
    expected = -(np.log(0.75) + np.log(0.5) + np.log(0.8) + np.log(0.75))
    np.testing.assert_allclose(loss.sum, expected, rtol=1e-6)
    assert loss.count == 4
    np.testing.assert_allclose(loss.metrics["accuracy"][0], 4.0)  # a logit of exactly 0 says no, and no is right here


def test_an_unknown_entry_has_no_gradient_whatever_it_holds():
    logit = jnp.array([[0.3, jnp.inf, -0.7]])
    known = jnp.array([[True, False, True]])
    label = jnp.array([[True, True, True]])
    gradient = jax.grad(lambda z: severity.binary(z, label, known, EVEN).sum)(logit)
    sigmoid = 1 / (1 + np.exp(-np.array([0.3, -0.7])))
    np.testing.assert_allclose(gradient[0, [0, 2]], sigmoid - 1, rtol=1e-6)
    assert gradient[0, 1] == 0.0 and np.isfinite(severity.binary(logit, label, known, EVEN).sum)


def test_weights_multiply_the_terms_of_their_class():
    logit, known = jnp.zeros((2, 1)), jnp.ones((2, 1), bool)
    label = jnp.array([[False], [True]])
    loss = severity.binary(logit, label, known, jnp.array([[0.625], [2.5]]))
    np.testing.assert_allclose(loss.sum, (0.625 + 2.5) * np.log(2), rtol=1e-6)
    assert loss.count == 2


def test_balanced_classes_have_the_same_total_and_an_empty_class_changes_nothing():
    label = np.array(
        [[True, False, True], [False, False, True], [False, False, False], [False, False, True], [True, False, True]]
    )
    known = np.array([[True] * 3, [True] * 3, [True] * 3, [True] * 3, [False] * 3])
    weight = severity.balance(label, known)
    np.testing.assert_allclose(weight, [[4 / 6, 1.0, 2.0], [2.0, 1.0, 4 / 6]], rtol=1e-6)
    assert weight[0, 0] * 3 == pytest.approx(weight[1, 0] * 1)


def test_no_class_weighs_more_than_the_limit():
    label = np.zeros((1000, 1), bool)
    label[0] = True
    assert severity.balance(label, np.ones((1000, 1), bool))[1, 0] == severity.MAX_CLASS_WEIGHT


def test_taking_the_shift_back_gives_the_probability_of_the_data():
    """The weighted loss of a lone bias is least at logit(share) + log(w1 / w0)."""
    label = np.zeros((40, 1), bool)
    label[:5] = True
    known = np.ones((40, 1), bool)
    weight = severity.balance(label, known)
    best = np.log(5 / 35) + severity.shift(weight)[0]
    gradient = jax.grad(lambda c: severity.binary(jnp.full((40, 1), c), jnp.asarray(label), jnp.asarray(known), weight).sum)(best)
    assert gradient == pytest.approx(0.0, abs=1e-5)


def test_one_score_and_ordered_biases_give_ordered_probabilities():
    """CORAL's point: with one direction, P(severity > k) falls with k for every row if the biases do."""
    score, bias = jnp.array([[-1.7], [0.4], [2.3]]), jnp.array([[0.9, -0.2, -1.1]])
    assert (np.diff(jax.nn.sigmoid(score + bias), axis=1) < 0).all()


def test_log_odds_are_those_of_weighted_rows_and_finite_where_a_class_has_none():
    label = np.array([[True, False, True], [False, False, True], [False, False, False], [False, False, True]])
    known = np.array([[True, True, False]] * 4)
    weight = np.array([[0.5, 1.0, 1.0], [3.0, 1.0, 1.0]], np.float32)
    found = severity.log_odds(label, known, weight)
    np.testing.assert_allclose(found, [np.log(3.0 * 1.5 / (0.5 * 3.5)), np.log(0.5 / 4.5), 0.0], rtol=1e-6)


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("share_of_level", [(0.5, 0.2, 0.2, 0.1), (0.9, 0.05, 0.03, 0.02)])
def test_the_preset_of_7b_finds_the_level_that_its_backbone_knows(balanced, share_of_level):
    """The preset's steps and rates, under a backbone that may end a row of each severity in any vector it likes."""
    settings, D = parse(GuardConfig, flags.load("guard.py:default")), 512
    level_B = np.random.default_rng(0).choice(4, size=4096, p=share_of_level)
    exceeds_BJ, known_BJ = level_B[:, None] > np.arange(3), np.ones((4096, 3), bool)
    weight_2J = severity.balance(exceeds_BJ, known_BJ) if balanced else np.ones((2, 3), np.float32)
    heads = guard_heads.init(SimpleNamespace(text=SimpleNamespace(width=D)), 2, jax.random.key(0))
    heads["severity"]["bias"] = jnp.asarray(severity.log_odds(exceeds_BJ, known_BJ, weight_2J))
    slow = optimizers.make(dataclasses.replace(settings.optimizer, freeze=()), {"guard": heads}, settings.steps)
    fast = optax.adam(1e-2)
    all_levels, exceeds, count = jnp.asarray(level_B), jnp.asarray(exceeds_BJ), settings.data.batch_size

    def loss(tree, hidden_LD, rows):
        logit_BQJ, _ = guard_heads.logits(tree["guard"], hidden_LD[all_levels[rows]][:, None])
        found = severity.binary(logit_BQJ[:, 0], exceeds[rows], jnp.ones((count, 3), bool), jnp.asarray(weight_2J))
        return found.sum / found.count

    def step(carry, key):
        tree, hidden_LD, slow_state, fast_state = carry
        ours, theirs = jax.grad(loss, (0, 1))(tree, hidden_LD, jax.random.randint(key, (count,), 0, len(all_levels)))
        ours, slow_state = slow.update(ours, slow_state, tree)
        theirs, fast_state = fast.update(theirs, fast_state, hidden_LD)
        return (optax.apply_updates(tree, ours), optax.apply_updates(hidden_LD, theirs), slow_state, fast_state), ()

    tree, hidden_LD = {"guard": heads}, jax.random.normal(jax.random.key(1), (4, D))
    start, keys = (tree, hidden_LD, slow.init(tree), fast.init(hidden_LD)), jax.random.split(jax.random.key(2), settings.steps)
    (tree, hidden_LD, *_), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, keys))(start)
    logit_LJ = guard_heads.logits(tree["guard"], hidden_LD[:, None])[0][:, 0] - severity.shift(weight_2J)[None]
    probability_LJ = np.asarray(jax.nn.sigmoid(logit_LJ))
    np.testing.assert_array_equal(scoring.levels(probability_LJ, np.full(4, 0.5)), [0, 1, 2, 3])
    assert np.abs(probability_LJ - 0.5).min() > 0.1
