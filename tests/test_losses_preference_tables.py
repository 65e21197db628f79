"""Losses on pairs where everything is known: a table of logits for 3 prompts with 6 answers each, trained on every pair with its exact
probability, ends at the policy that the method's paper promises in closed form.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from srlhfv_jax.losses import dual, preference

N, G = 3, 6  # prompts, answers
BETA = 0.4
RNG = np.random.default_rng(11)
REWARD_NG, COST_NG, MARGIN_NG = (RNG.normal(size=(N, G)) for _ in range(3))
REFERENCE_NG = np.log(RNG.dirichlet(np.full(G, 3.0), size=N))
SAFE_NG = np.array([[1, 0, 1, 1, 0, 0], [0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 0, 1]], float)
LAM = 0.7

# Every pair of different answers, once each way round: [prompt, winner, loser].
PROMPT, FIRST, SECOND = (x.ravel() for x in np.meshgrid(range(N), range(G), range(G), indexing="ij"))
ROWS = FIRST != SECOND
PROMPT, FIRST, SECOND = PROMPT[ROWS], FIRST[ROWS], SECOND[ROWS]


def of_pairs(table_NG):
    """(the winner's entry, the loser's entry) of all rows."""
    return table_NG[PROMPT, FIRST], table_NG[PROMPT, SECOND]


def preferred(score_NG):
    """P(first over second) = σ(s_first - s_second), Bradley and Terry."""
    first_B, second_B = of_pairs(score_NG)
    return 1 / (1 + np.exp(second_B - first_B))


def softmax(logit_NG):
    weight_NG = np.exp(logit_NG - logit_NG.max(1, keepdims=True))
    return weight_NG / weight_NG.sum(1, keepdims=True)


def tilted(score_NG, reference_NG=REFERENCE_NG):
    """π_ref e^score / Z."""
    return softmax(reference_NG + score_NG)


def distance(logit_NG, probability_NG):
    """The largest total variation over prompts."""
    return 0.5 * np.abs(softmax(logit_NG) - probability_NG).sum(1).max()


def trained(loss, weight_B, reference_NG=REFERENCE_NG):
    """Logits that minimise loss(h_B, weight_B), from the reference on; h by the log-ratios of a batch with mixed sides."""
    side_B = (np.arange(len(PROMPT)) % 3 == 1).astype(np.int32)  # the winner is the second side of every third row
    side_BS = np.stack([np.where(side_B, SECOND, FIRST), np.where(side_B, FIRST, SECOND)], axis=1)
    reference_NG = jax.nn.log_softmax(jnp.asarray(reference_NG, jnp.float32))
    weight_B = jnp.asarray(weight_B, jnp.float32)

    @jax.jit
    @jax.value_and_grad
    def total(logit_NG):
        logp_NG = jax.nn.log_softmax(logit_NG)
        logp_BS, ref_logp_BS = (table[PROMPT[:, None], side_BS] for table in (logp_NG, reference_NG))
        winner_B, loser_B = preference.log_ratios(logp_BS, ref_logp_BS, side_B)
        summed, count = loss(winner_B - loser_B, weight_B=weight_B)
        return summed / count

    def in_float64(logit):
        value, gradient = total(jnp.asarray(logit.reshape(N, G), jnp.float32))
        return float(value), np.asarray(gradient, np.float64).ravel()

    logit = np.asarray(reference_NG, float).ravel()
    for _ in range(4):  # values in float32 end a line search early
        logit = minimize(in_float64, logit, jac=True, method="L-BFGS-B", options={"ftol": 0, "gtol": 1e-8, "maxls": 50}).x
    return logit.reshape(N, G)


def logistic(offset=0.0, flip=0.0, scale=BETA):
    arrays = (jnp.asarray(x, jnp.float32) for x in (offset, flip))
    return functools.partial(preference.logistic, **dict(zip(("offset_B", "flip_B"), arrays)), scale=scale)


def square(target):
    return functools.partial(preference.square, target_B=jnp.asarray(target, jnp.float32))


@functools.cache
def helpful_policy():
    """DPO on the reward's pairs: the first step of SACPO."""
    return trained(logistic(), preferred(REWARD_NG))


def test_dpo_reaches_the_reference_tilted_by_the_reward():
    assert distance(helpful_policy(), tilted(REWARD_NG / BETA)) < 1e-3


@pytest.mark.parametrize("main", [0.1, 0.5, 1.0])
def test_modpo_reaches_the_tilt_by_the_weighted_sum_of_both_rewards(main):
    offset = preference.margin_offset(*of_pairs(MARGIN_NG), weight=1 - main, main=main)
    policy = trained(logistic(offset, scale=BETA / main), preferred(REWARD_NG))
    assert distance(policy, tilted((main * REWARD_NG + (1 - main) * MARGIN_NG) / BETA)) < 1e-3


@functools.cache
def stepwise_policy():
    """SACPO: from the helpful policy, which is also the reference, with β/λ on the pairs of safety."""
    return trained(logistic(scale=BETA / LAM), preferred(-COST_NG), helpful_policy())


def test_sacpo_reaches_the_constrained_optimum_in_two_steps():
    assert distance(stepwise_policy(), tilted((REWARD_NG - LAM * COST_NG) / BETA)) < 1e-3


@pytest.mark.parametrize("q", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_between_both_steps_of_sacpo_lies_the_optimum_of_a_smaller_multiplier(q):
    merged = (1 - q) * helpful_policy() + q * stepwise_policy()
    assert distance(merged, tilted((REWARD_NG - q * LAM * COST_NG) / BETA)) < 1e-3


def test_mocan_reaches_the_constrained_optimum_from_pseudo_labels():
    """Each pair once: its label is a probability, not a draw."""
    flip = preference.pseudo_flip(*of_pairs(REWARD_NG - LAM * COST_NG))
    policy = trained(logistic(flip=flip), FIRST < SECOND)
    assert distance(policy, tilted((REWARD_NG - LAM * COST_NG) / BETA)) < 1e-3


@pytest.mark.parametrize("label_scale", [BETA, 1.0])
def test_pecan_reaches_it_from_the_log_ratios_of_two_policies_as_rewards(label_scale):
    """β log π_r/π_ref and β log π_g/π_ref are rewards. Labels of the bare log-ratios, as in the released code, give a sharper policy."""
    ratio_NG = (REWARD_NG - LAM * COST_NG) / BETA
    policy = trained(logistic(flip=preference.pseudo_flip(*of_pairs(label_scale * ratio_NG))), FIRST < SECOND)
    assert distance(policy, tilted(ratio_NG * label_scale / BETA)) < 1e-3


def test_mocan_with_the_multiplier_of_the_dual_keeps_the_budget():
    """Samples of a uniform reference, each answer once: the policy's own cost is the budget that the dual was solved for."""
    uniform_NG, budget = np.zeros((N, G)), -0.4
    lam = dual.solve(REWARD_NG, COST_NG, budget, BETA, ceiling=50.0)
    flip = preference.pseudo_flip(*of_pairs(REWARD_NG - lam * COST_NG))
    policy_NG = softmax(trained(logistic(flip=flip), FIRST < SECOND, uniform_NG))
    assert lam > 0 and np.sum(policy_NG * COST_NG, axis=1).mean() == pytest.approx(budget, abs=1e-3)


@pytest.mark.parametrize("delta", [0.0, 2.0, 10.0])
def test_safedpo_reaches_the_helpful_policy_among_safe_answers_whatever_delta(delta):
    """Rows of a safe and an unsafe answer have the safe one as their winner, of two unsafe ones none is left."""
    safe_w, safe_l = of_pairs(SAFE_NG)
    weight = np.where(safe_w == safe_l, preferred(REWARD_NG) * safe_w, safe_w)
    policy = trained(logistic(preference.safedpo_offset(1 - safe_w, 1 - safe_l, delta)), weight)
    helpful_NG = tilted(REWARD_NG / BETA) * SAFE_NG
    assert distance(policy, helpful_NG / helpful_NG.sum(1, keepdims=True)) < 1e-3


def least_squares(mean_target_B):
    """f that minimises Σ (f_i - f_j - t_ij)² over all pairs of a prompt, t_ij = -t_ji: f_i = Σ_j t_ij / G."""
    score_NG = np.zeros((N, G))
    np.add.at(score_NG, (PROMPT, FIRST), mean_target_B / G)
    return score_NG


def test_ipo_reaches_its_least_squares():
    p_B = preferred(REWARD_NG)
    policy = trained(square(preference.ipo_target(BETA)), p_B)
    assert distance(policy, tilted(least_squares((2 * p_B - 1) / (2 * BETA)))) < 1e-3


def test_bfpo_reaches_its_least_squares():
    """The mean targets of the paper: (p - 1/2)/τ of safe answers, -(p - 1/2)/τ of unsafe ones, ±1/τ towards the safe one of two."""
    p_B, (safe_w, safe_l), tau = preferred(REWARD_NG), of_pairs(SAFE_NG), 0.6
    policy = trained(square(preference.bfpo_target(safe_w, safe_l, tau=tau)), p_B)
    same = np.where(safe_w == 1, p_B - 0.5, 0.5 - p_B)
    mean_target_B = np.where(safe_w == safe_l, same, safe_w - safe_l) / tau
    assert distance(policy, tilted(least_squares(mean_target_B))) < 1e-3


def test_simpo_reaches_the_tilt_of_a_uniform_policy():
    """Answers of one length, γ = 0, and log-probs without a reference."""
    length = 2.0
    policy = trained(logistic(scale=BETA / length), preferred(REWARD_NG / length), np.zeros((N, G)))
    assert distance(policy, softmax(REWARD_NG / BETA)) < 1e-3


def test_kto_moves_an_answer_by_the_sign_of_its_expected_label_alone():
    """w_D p σ(-u) + w_U (1 - p) σ(u) with u = β (ρ - z) has the slope β σ'(u) (w_U (1 - p) - w_D p): no gradient where w_D p =
    w_U (1 - p), and else one direction wherever the answer is."""
    weights = dict(desirable_weight=1.25, undesirable_weight=0.5)
    p_NG, z = np.array([[0.1, 0.2, 0.5 / 1.75, 0.3, 0.6, 1.0]] * N), 0.3
    ratio_NG = np.stack([np.linspace(shift - 4, shift + 4, G) for shift in (-1.5, 0.25, 2.0)])

    def expected(ratio_NG):
        labels = (1.0, p_NG), (0.0, 1 - p_NG)
        parts = [
            preference.kto(ratio_NG, jnp.full((N, G), label), jnp.asarray(share_NG, jnp.float32), z, beta=BETA, **weights)
            for label, share_NG in labels
        ]
        return parts[0][0] + parts[1][0]

    slope_NG = jax.grad(expected)(jnp.asarray(ratio_NG, jnp.float32))
    above_NG = 1 / (1 + np.exp(-BETA * (ratio_NG - z)))
    formula_NG = BETA * above_NG * (1 - above_NG) * (0.5 * (1 - p_NG) - 1.25 * p_NG)
    np.testing.assert_allclose(slope_NG, formula_NG, rtol=1e-4, atol=1e-7)
    assert (slope_NG[:, :2] > 0).all() and (slope_NG[:, 3:] < 0).all()
