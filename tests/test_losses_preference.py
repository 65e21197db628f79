"""Losses on pairs against their papers' formulas in NumPy, and the methods that are one another's special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srlhfv_jax.losses import preference, sft

H = np.array([1.75, -0.4, 0.3, -2.6])
WINNER = np.array([-0.9, -1.3, 2.2, -3.5])  # log π/π_ref of the preferred answer; H more than that of the other
UNSAFE_W, UNSAFE_L = np.array([0.0, 0, 1, 1]), np.array([0.0, 1, 0, 1])
LOGP_BS = np.array([[-7.5, -3.25], [-12.1, -9.6], [-2.4, -8.8]])
REF_BS = np.array([[-6.75, -4.5], [-11.3, -9.9], [-2.9, -6.1]])
TOKENS_BS = np.array([[5.0, 3], [8, 6], [2, 7]])
SIDE_B = np.array([1, 0, 0])
BETA = 0.35


def f32(x):
    return jnp.asarray(x, jnp.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def mean(pair):
    return float(pair[0] / pair[1])


def logistic(h=H, offset=0.0, flip=0.0, scale=BETA):
    """(the mean loss, the gradient of the SUM by h)."""

    def total(h_B):
        loss = preference.logistic(h_B, offset, flip, scale=scale)
        return loss[0], mean_of(loss)

    (_, loss), gradient_B = jax.value_and_grad(total, has_aux=True)(f32(h))
    return float(loss), np.asarray(gradient_B)


def mean_of(loss):
    return loss[0] / loss[1]


def square(h, target):
    gradient_B = jax.grad(lambda h_B: preference.square(h_B, target)[0])(f32(h))
    return mean(preference.square(f32(h), target)), np.asarray(gradient_B)


def test_dpo_is_its_formula_and_its_gradient():
    loss, gradient = logistic()
    np.testing.assert_allclose(loss, np.mean(np.log1p(np.exp(-BETA * H))), rtol=1e-6)
    np.testing.assert_allclose(gradient, -BETA * sigmoid(-BETA * H), rtol=1e-6)


def test_a_flip_weighs_both_ways_round():
    loss, gradient = logistic(flip=f32([0.0, 0.1, 0.5, 1.0]))
    flip, u = np.array([0.0, 0.1, 0.5, 1.0]), BETA * H
    np.testing.assert_allclose(loss, np.mean(-(1 - flip) * np.log(sigmoid(u)) - flip * np.log(sigmoid(-u))), rtol=1e-6)
    np.testing.assert_allclose(gradient, -BETA * ((1 - flip) * sigmoid(-u) - flip * sigmoid(u)), rtol=1e-5)


def test_an_even_flip_pushes_nowhere_where_h_is_at_its_offset():
    loss, gradient = logistic(h=[1.5, -0.25, 6.0], offset=f32([0.75, -0.125, 3.0]), flip=0.5, scale=0.5)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)


@pytest.mark.parametrize("flip", [0.0, 0.3, 1.0])
def test_the_logistic_loss_is_finite_and_exact_far_out(flip):
    u = np.array([1e4, -1e4, 87.5, -87.5])
    loss, gradient = logistic(h=u, flip=flip, scale=1.0)
    np.testing.assert_allclose(loss, np.mean((1 - flip) * np.maximum(-u, 0) + flip * np.maximum(u, 0)), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(gradient, np.where(u > 0, flip, flip - 1), rtol=1e-6, atol=1e-30)


def test_ipo_is_a_parabola_around_its_target():
    loss, gradient = square(H, preference.ipo_target(BETA))
    np.testing.assert_allclose(loss, np.mean((H - 1 / 0.7) ** 2), rtol=1e-6)
    np.testing.assert_allclose(gradient, 2 * (H - 1 / 0.7), rtol=1e-5)


def test_safedpo_is_dpo_without_delta_or_between_safe_answers():
    dpo, by_h = logistic()
    for unsafe_w, unsafe_l, delta in ((UNSAFE_W, UNSAFE_L, 0.0), (np.zeros(4), np.zeros(4), 7.5)):
        loss, gradient = logistic(offset=f32(preference.safedpo_offset(unsafe_w, unsafe_l, delta)))
        assert loss == dpo
        np.testing.assert_array_equal(gradient, by_h)


def test_safedpo_pushes_a_safe_answer_away_from_an_unsafe_one_until_delta():
    offset = preference.safedpo_offset(np.zeros(4), np.ones(4), 2.5)
    loss, gradient = logistic(offset=f32(offset))
    np.testing.assert_allclose(loss, np.mean(np.log1p(np.exp(2.5 - BETA * H))), rtol=1e-6)
    np.testing.assert_allclose(gradient, -BETA * sigmoid(2.5 - BETA * H), rtol=1e-6)
    np.testing.assert_array_equal(preference.safedpo_offset(UNSAFE_W, UNSAFE_L, 2.5), [0, 2.5, -2.5, 0])


def test_modpo_is_its_formula_and_its_step_grows_with_the_inverse_of_the_main_weight():
    margin_w, margin_l = np.array([0.5, -1.25, 2.0, 0.1]), np.array([-0.3, 0.4, 1.1, 2.3])
    offset = preference.margin_offset(margin_w, margin_l, weight=0.75, main=0.25)
    loss, gradient = logistic(offset=f32(offset), scale=BETA / 0.25)
    u = (BETA * H - 0.75 * (margin_w - margin_l)) / 0.25
    np.testing.assert_allclose(loss, np.mean(np.log1p(np.exp(-u))), rtol=1e-6)
    np.testing.assert_allclose(gradient, -(BETA / 0.25) * sigmoid(-u), rtol=1e-4)


def test_modpo_sees_differences_of_margins_only_and_none_where_the_main_weight_is_one():
    margin_w, margin_l = np.array([0.5, -1.25, 2.0, 0.75]), np.array([-0.25, 0.5, 1.0, 2.5])  # exact in binary
    shifted = preference.margin_offset(margin_w + 3.5, margin_l + 3.5, weight=0.5, main=0.5)
    np.testing.assert_array_equal(shifted, preference.margin_offset(margin_w, margin_l, weight=0.5, main=0.5))
    offset = preference.margin_offset(margin_w, margin_l, weight=0.0, main=1.0)
    assert logistic(offset=f32(offset), scale=BETA / 1.0)[0] == logistic()[0]


def test_bfpo_between_safe_answers_is_ipo_with_its_temperature():
    target = preference.bfpo_target(np.ones(4), np.ones(4), tau=0.2)
    ipo = preference.safety_target(1 - UNSAFE_W, 1 - UNSAFE_L, winner=0.0, loser=0.0, constant=0.5, tau=0.2)
    np.testing.assert_allclose(ipo, preference.ipo_target(0.2))
    np.testing.assert_allclose(target, 1 / (2 * 0.2))
    assert square(H, f32(target))[0] == pytest.approx(np.mean((H - 2.5) ** 2), rel=1e-6)


def test_bfpo_has_the_published_targets():
    target = preference.bfpo_target(1 - UNSAFE_W, 1 - UNSAFE_L, tau=0.2)
    np.testing.assert_allclose(target, np.array([0.5, 1.0, -1.0, -0.5]) / 0.2)
    other = preference.bfpo_target(1 - UNSAFE_W, 1 - UNSAFE_L, tau=0.5, b1=5.0, b3=0.25, alpha=0.3)
    np.testing.assert_allclose(other, np.array([0.7, 0.95, -0.55, -0.3]) / 0.5)


@pytest.mark.parametrize("p", [0.0, 0.13, 0.5, 0.82, 1.0])
def test_bfpo_wants_the_safe_answer_of_two_by_one_over_tau_whatever_humans_prefer(p):
    """With probability p the safe one wins, at h; else the unsafe one, at -h: the least squares are the mean of target and -target."""
    safe_wins, unsafe_wins = (preference.bfpo_target(np.ones(1), np.zeros(1), tau=0.2), preference.bfpo_target(0.0, 1.0, tau=0.2))
    assert safe_wins == -unsafe_wins
    np.testing.assert_allclose(p * safe_wins - (1 - p) * unsafe_wins, 1 / 0.2)
    weight_B = f32([p, 1 - p])
    target_B = f32([safe_wins[0], unsafe_wins])
    gradient = jax.grad(lambda h: preference.square(jnp.stack([h, -h]), target_B, weight_B)[0])
    assert float(gradient(jnp.float32(5.0))) == pytest.approx(0, abs=1e-5)
    assert float(gradient(jnp.float32(5.5))) == pytest.approx(1.0, rel=1e-5)


def test_bfpo_sees_more_than_the_difference_of_safety():
    both_safe, both_unsafe = preference.bfpo_target(1.0, 1.0, tau=0.2), preference.bfpo_target(0.0, 0.0, tau=0.2)
    assert (both_safe, both_unsafe) == (2.5, -2.5)


def test_log_ratios_are_of_the_preferred_side_first():
    winner, loser = preference.log_ratios(f32(LOGP_BS), f32(REF_BS), SIDE_B)
    np.testing.assert_allclose(winner, [-3.25 + 4.5, -12.1 + 11.3, -2.4 + 2.9], rtol=1e-5)
    np.testing.assert_allclose(loser, [-7.5 + 6.75, -9.6 + 9.9, -8.8 + 6.1], rtol=1e-5)


def test_simpo_without_gamma_on_answers_of_one_length_is_dpo_from_a_uniform_reference():
    length, uniform = 6.0, np.full((3, 2), -6 * np.log(50))
    difference = np.array([-3.25 + 7.5, -12.1 + 9.6, -2.4 + 8.8])
    expected = np.mean(np.log1p(np.exp(-2.5 / length * difference)))
    per_token = preference.per_token(f32(LOGP_BS), jnp.full((3, 2), length))
    for logp, reference, scale in ((per_token, np.zeros((3, 2)), 2.5), (f32(LOGP_BS), uniform, 2.5 / length)):
        winner, loser = preference.log_ratios(logp, f32(reference), SIDE_B)
        np.testing.assert_allclose(mean(preference.logistic(winner - loser, 0.0, 0.0, scale=scale)), expected, rtol=1e-5)


def test_simpo_takes_means_and_keeps_a_distance():
    per_token = preference.per_token(f32(LOGP_BS), f32(TOKENS_BS))
    winner, loser = preference.log_ratios(per_token, jnp.zeros((3, 2)), SIDE_B)
    u = 2.5 * np.array([-3.25 / 3 + 7.5 / 5, -12.1 / 8 + 9.6 / 6, -2.4 / 2 + 8.8 / 7]) - 0.8
    loss = preference.logistic(winner - loser, 0.8, 0.0, scale=2.5)
    np.testing.assert_allclose(mean(loss), np.mean(np.log1p(np.exp(-u))), rtol=1e-5)


def test_a_pseudo_label_is_turned_round_with_the_probability_of_its_scores():
    score_w, score_l = np.array([1.3, -0.2]), np.array([0.9, 2.1])
    np.testing.assert_allclose(preference.pseudo_flip(score_w, score_l), sigmoid(score_l - score_w), rtol=1e-6)
    flip, u = sigmoid(-0.4), BETA * 0.7
    expected = -(1 - flip) * np.log(sigmoid(u)) - flip * np.log(sigmoid(-u))  # over draws of the label
    loss = preference.logistic(f32([0.7]), 0.0, preference.pseudo_flip(f32([1.3]), f32([0.9])), scale=BETA)
    assert mean(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("rubbish", [123.5, np.nan, np.inf])
def test_a_row_of_weight_zero_takes_no_part(rubbish):
    weight_B, more = f32([1.0, 1, 1, 1, 0]), f32([*H, rubbish])
    losses = {
        "logistic": lambda h_B, weight_B=None: preference.logistic(h_B, 0.4 * h_B, 0.1, weight_B, scale=BETA),
        "square": lambda h_B, weight_B=None: preference.square(h_B, 0.4 * h_B, weight_B),
        "sft_term": lambda h_B, weight_B=None: preference.sft_term(h_B, f32(np.arange(len(h_B)) + 2), weight_B),
    }
    for name, loss in losses.items():
        total, gradient = jax.value_and_grad(lambda h_B: mean_of(loss(h_B, weight_B)))(more)
        assert float(total) == pytest.approx(mean(loss(f32(H))), rel=1e-6), name
        assert gradient[4] == 0 and jnp.all(jnp.isfinite(gradient)), name


def test_the_term_on_preferred_answers_is_their_mean_log_prob_per_token():
    loss = preference.sft_term(f32([-3.25, -12.1, -2.4]), f32([3, 8, 2]))
    np.testing.assert_allclose(loss, (3.25 / 3 + 12.1 / 8 + 2.4 / 2, 3), rtol=1e-6)


def test_an_answer_without_tokens_has_no_mean():
    np.testing.assert_allclose(preference.per_token(f32([-np.inf, np.nan, -2.5]), f32([0, 0, 2])), [0, 0, -1.25])


def test_unlearning_pushes_one_answer_up_and_the_other_down_as_far_as_the_cap():
    loss = preference.unlearn(f32(LOGP_BS), f32(TOKENS_BS), SIDE_B, keep=0.9, forget=0.2, cap=1.55)
    kept = np.array([3.25 / 3, 12.1 / 8, 2.4 / 2])
    forgotten = np.array([7.5 / 5, 1.55, 8.8 / 7])  # 9.6 / 6 is over the cap
    np.testing.assert_allclose(mean(loss), np.mean(0.9 * kept - 0.2 * forgotten), rtol=1e-6)
    by_logp = jax.grad(lambda x: preference.unlearn(x, f32(TOKENS_BS), SIDE_B, keep=0.9, forget=0.2, cap=1.55)[0])(f32(LOGP_BS))
    expected = [[0.2 / 5, -0.9 / 3], [-0.9 / 8, 0], [-0.9 / 2, 0.2 / 7]]
    np.testing.assert_allclose(by_logp, expected, rtol=1e-6)


def test_unlearning_nothing_is_supervised_fine_tuning_on_the_preferred_answers():
    rng = np.random.default_rng(2)
    logp_BSR = -rng.exponential(1.5, size=(3, 2, 6))
    total = preference.unlearn(f32(logp_BSR.sum(2)), jnp.full((3, 2), 6.0), SIDE_B, keep=1.0, forget=0.0, cap=3.0)
    winner_BR = logp_BSR[np.arange(3), SIDE_B]
    assert mean(total) == pytest.approx(-winner_BR.mean(), rel=1e-6)
    assert mean(total) == pytest.approx(mean(sft.sft(f32(winner_BR), jnp.ones((3, 6), bool))), rel=1e-6)


def test_kto_is_its_formula_and_no_gradient_goes_through_its_baseline():
    ratio = np.array([[0.8, -1.3], [2.1, 0.4], [-0.7, np.nan]])
    desirable, weight_BS = np.array([[1, 0], [1, 0], [0, 1]]), np.array([[1.0, 1], [1, 1], [1, 0]])
    z = (1.2 - 0.3 + 0.75) / 3
    baseline = preference.kto_baseline(jnp.float32(1.65), jnp.float32(3))
    assert float(baseline) == pytest.approx(z, rel=1e-6)

    def loss(ratio_BS, baseline=baseline):
        weights = {"beta": BETA, "desirable_weight": 1.0, "undesirable_weight": 1.5}
        return preference.kto(ratio_BS, f32(desirable), f32(weight_BS), baseline, **weights)

    good, bad = sigmoid(BETA * (ratio - z)), sigmoid(BETA * (z - ratio))
    terms = np.where(desirable == 1, 1 - good, 1.5 * (1 - bad))
    np.testing.assert_allclose(loss(f32(ratio)), (np.nansum(terms), 5), rtol=1e-6)
    slope = np.nan_to_num(BETA * good * bad)
    gradient = jax.grad(lambda ratio_BS: loss(ratio_BS)[0])(f32(ratio))
    np.testing.assert_allclose(gradient, np.where(desirable == 1, -slope, 1.5 * slope), rtol=1e-5, atol=1e-9)
    through = jax.grad(lambda total: loss(f32(ratio), preference.kto_baseline(total, jnp.float32(3)))[0])
    assert float(through(jnp.float32(1.65))) == 0


def test_the_baseline_of_kto_is_never_negative_and_zero_of_nothing():
    assert float(preference.kto_baseline(jnp.float32(-2.5), jnp.float32(4))) == 0
    assert float(preference.kto_baseline(jnp.float32(0), jnp.float32(0))) == 0


def test_numbers_of_pairs_and_of_their_classes():
    unsafe_w, unsafe_l = f32([0, 0, 0, 1]), f32([1, 1, -1, 1])  # of the third pair one flag is unknown
    winner, loser = f32(WINNER), f32(WINNER - H)
    logged = preference.numbers(winner, loser, unsafe_w, unsafe_l, scale=BETA)
    assert mean(logged["accuracy"]) == 0.5
    np.testing.assert_allclose(mean(logged["beta_h"]), BETA * H.mean(), rtol=1e-5)
    np.testing.assert_allclose(mean(logged["winner_log_ratio"]), WINNER.mean(), rtol=1e-6)
    np.testing.assert_allclose(mean(logged["loser_log_ratio"]), (WINNER - H).mean(), rtol=1e-6)
    shares = {kind: mean(logged[f"share.{kind}"]) for kind in preference.CLASSES}
    assert shares == {"safe_safe": 0, "safe_unsafe": 0.5, "unsafe_safe": 0, "unsafe_unsafe": 0.25}


def test_rows_that_fill_a_batch_are_in_no_share():
    arrays = [jnp.append(f32(x), jnp.nan) for x in (WINNER, WINNER - H, UNSAFE_W, UNSAFE_L)]
    filled = preference.numbers(*arrays, f32([1, 1, 1, 1, 0]), scale=BETA)
    for kind in preference.CLASSES:
        assert mean(filled[f"share.{kind}"]) == 0.25
    np.testing.assert_allclose(mean(filled["beta_h"]), BETA * H.mean(), rtol=1e-5)


def test_numbers_of_microbatches_add_up_to_those_of_the_batch():
    flags = f32(UNSAFE_W), f32(UNSAFE_L), f32([1, 0, 1, 1])
    arrays = (f32(WINNER), f32(WINNER - H), *flags)
    whole = preference.numbers(*arrays, scale=BETA)
    first, second = (preference.numbers(*(x[part] for x in arrays), scale=BETA) for part in (slice(0, 1), slice(1, 4)))
    jax.tree.map(lambda a, b, all_: np.testing.assert_allclose(a + b, all_, rtol=1e-6, atol=1e-7), first, second, whole)


def test_constants_as_arrays_compile_a_step_once_for_several_methods():
    compiled = []

    @jax.jit
    def step(h_B, offset_B, flip_B, scale):
        compiled.append(scale)
        return preference.logistic(h_B, offset_B, flip_B, scale=scale)

    for offset, flip, scale in ((0.0, 0.0, 0.1), (2.5, 0.0, 0.35), (0.0, 0.2, 1.4)):
        loss = step(f32(H), jnp.full(4, offset), jnp.full(4, flip), jnp.float32(scale))
        np.testing.assert_allclose(mean(loss), logistic(offset=offset, flip=flip, scale=scale)[0], rtol=1e-6)
    assert len(compiled) == 1
