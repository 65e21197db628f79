"""Losses on pairs of answers: two functions of one number a pair, and arrays made from labels that tell the methods apart.

    h = [log π(y_w|x) - log π_ref(y_w|x)] - [log π(y_l|x) - log π_ref(y_l|x)]      y_w the preferred answer, y_l the other; nats

    method         function   scale    offset, flip or target
    DPO            logistic   β        0; label smoothing is a flip                          arXiv 2305.18290, equation 7
    SafeDPO        logistic   β        safedpo_offset, on rows that were swapped or dropped     arXiv 2505.20065
    MODPO          logistic   β/w_0    margin_offset                                         arXiv 2310.03708
    SACPO          logistic   β/λ      0; the reference is the policy of the first step      arXiv 2404.11049
    MoCAN, PeCAN   logistic   β        0; flip = pseudo_flip                                 arXiv 2405.19544
    SimPO          logistic   β        γ; h of log-probs per token, the reference's are 0     arXiv 2405.14734
    IPO            square     -        ipo_target                                            arXiv 2310.12036, equation 17
    BFPO           square     -        bfpo_target                                           arXiv 2408.15313

`kto` and `unlearn` read the two answers apart. `logp_BS` are sums over the tokens of an answer, its end included, of both sides in
the order of the row; `winner_B` says which side is preferred. Constants are arguments, Python numbers or arrays: a jitted step that
takes them as arrays is compiled once for several methods.

Of rows without a preference this file knows only a weight of 0 (rows that fill a batch); `weight_B` None: every row counts.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from srlhfv_jax.losses import masked

Rows = Float[Array, "B"]
Scalar = Float[Array, ""] | float
CLASSES = {"safe_safe": (0, 0), "safe_unsafe": (0, 1), "unsafe_safe": (1, 0), "unsafe_unsafe": (1, 1)}  # winner, loser


def logistic(
    h_B: Rows, offset_B: Rows | Scalar, flip_B: Rows | Scalar, weight_B: Rows | None = None, *, scale: Scalar
) -> masked.Mean:
    """L = mean_w [ -(1 - f) log σ(u) - f log σ(-u) ], u = scale h - offset. dL/dh = -scale (σ(-u) - f) for each row.

    DPO (Rafailov et al., arXiv 2305.18290, equation 7) where offset and flip are 0; the table above has the others.

    Args:
        flip_B: f, the probability that the preference is the other way round.
    """
    weight_B = _weight(h_B, weight_B)
    u_B = scale * masked.keep(h_B, weight_B > 0) - _rows(offset_B, weight_B)
    flip_B = _rows(flip_B, weight_B)
    return masked.weighted_mean(-(1 - flip_B) * jax.nn.log_sigmoid(u_B) - flip_B * jax.nn.log_sigmoid(-u_B), weight_B)


def square(h_B: Rows, target_B: Rows | Scalar, weight_B: Rows | None = None) -> masked.Mean:
    """L = mean_w (h - target)², nats². IPO (Azar et al., arXiv 2310.12036, equation 17)."""
    weight_B = _weight(h_B, weight_B)
    return masked.weighted_mean((masked.keep(h_B, weight_B > 0) - _rows(target_B, weight_B)) ** 2, weight_B)


def log_ratios(logp_BS: Float[Array, "B 2"], ref_logp_BS: Float[Array, "B 2"], winner_B: Int[Array, "B"]) -> tuple[Rows, Rows]:
    """log π/π_ref of the preferred answer and of the other, nats; h is the first less the second.

    For SimPO both arguments are per token (`per_token`) and the reference's are 0.
    """
    chex.assert_rank([logp_BS, ref_logp_BS, winner_B], [2, 2, 1])
    chex.assert_equal_shape([logp_BS, ref_logp_BS])
    return winner_first(logp_BS.astype(jnp.float32) - ref_logp_BS.astype(jnp.float32), winner_B)


def winner_first(x_BS: Float[Array, "B 2"], winner_B: Int[Array, "B"]) -> tuple[Rows, Rows]:
    """(x of the preferred side, x of the other)."""
    first_B, second_B = x_BS[:, 0], x_BS[:, 1]
    return jnp.where(winner_B == 0, first_B, second_B), jnp.where(winner_B == 0, second_B, first_B)


def per_token(logp: Float[Array, "..."], tokens: Float[Array, "..."]) -> Float[Array, "..."]:
    """log π(y|x) / |y|: the mean over an answer's real tokens, nats per token; 0 without a token."""
    return jnp.where(tokens > 0, logp, 0.0) / jnp.maximum(tokens, 1)


def safedpo_offset(unsafe_w_B: Rows, unsafe_l_B: Rows, delta: Scalar) -> Rows:
    """Δ (u_l - u_w): h of a pair (safe, unsafe) is pushed until about Δ/β nats, not until about 0. SafeDPO (arXiv 2505.20065).

    Args:
        unsafe_w_B, unsafe_l_B: u, 1 for an unsafe answer and 0 for a safe one.
        delta: Δ >= 0. The optimum is the same for each; it only says how fast unsafe answers lose their mass.
    """
    return delta * (unsafe_l_B - unsafe_w_B)


def safety_target(safe_w_B: Rows, safe_l_B: Rows, *, winner: Scalar, loser: Scalar, constant: Scalar, tau: Scalar) -> Rows:
    """(winner s_w - loser s_l + constant) / τ, nats: the form of BFPO's target, and of IPO's, 1 / (2β), with 0, 0, 1/2 and τ = β."""
    return (winner * safe_w_B - loser * safe_l_B + constant) / tau


def bfpo_target(safe_w_B: Rows, safe_l_B: Rows, *, tau: Scalar, b1: Scalar = 3.0, b3: Scalar = 0.5, alpha: Scalar = 0.5) -> Rows:
    """(B_1 B_3 s_w - B_3 s_l - α) / τ, nats; (3/2 s_w - 1/2 s_l - 1/2) / τ as published. BFPO (arXiv 2408.15313).

    Both safe: IPO's target. One safe: 1/τ towards it on average, whichever is preferred. Both unsafe: the less helpful one wins.

    Args:
        safe_w_B, safe_l_B: s, 1 for a safe answer and 0 for an unsafe one.
        b1, b3: B_1 and B_3 = 1 / (B_1 - 1).
    """
    return safety_target(safe_w_B, safe_l_B, winner=b1 * b3, loser=b3, constant=-alpha, tau=tau)


def ipo_target(beta: Scalar) -> Scalar:
    """1 / (2β), nats, of every pair (arXiv 2310.12036, equation 17)."""
    return 1 / (2 * beta)


def margin_offset(margin_w_B: Rows, margin_l_B: Rows, *, weight: Scalar, main: Scalar) -> Rows:
    """w (m_w - m_l) / w_0, to be used with the scale β / w_0. MODPO (Zhou et al., arXiv 2310.03708).

    Args:
        margin_w_B, margin_l_B: m, another objective's reward: β (log π_m - log π_m's reference) of a policy trained for it.
        weight: w of that objective.
        main: w_0 > 0, the weight of the one whose preferences these are; 1 - w as published.
    """
    return weight * (margin_w_B - margin_l_B) / main


def pseudo_flip(score_w_B: Rows, score_l_B: Rows) -> Rows:
    """σ(s_l - s_w): the probability that a pseudo-label drawn from scores is the other way round.

    MoCAN and PeCAN (arXiv 2405.19544) draw each label once; as a flip the probability is that draw's expectation. Scores are rewards:
    s = r + λ g, or of two policies β (log π_r/π_ref + λ log π_g/π_ref), whose β their released code leaves out.
    """
    return jax.nn.sigmoid(score_l_B - score_w_B)


def sft_term(logp_B: Rows, tokens_B: Rows, weight_B: Rows | None = None) -> masked.Mean:
    """L = mean_w [ -log π(y|x) / |y| ], nats per token: a term on preferred answers, which keeps their log-probs from falling with h.

    The likelihood term of iterative reasoning preference optimization (Pang et al., arXiv 2404.19733). The count is rows, as that of
    `logistic` and `square`: the two sums may be added.

    Args:
        tokens_B: real tokens of each answer.
    """
    weight_B = _weight(logp_B, weight_B)
    return masked.weighted_mean(-per_token(logp_B, tokens_B), weight_B)


def unlearn(
    logp_BS: Float[Array, "B 2"],
    tokens_BS: Float[Array, "B 2"],
    winner_B: Int[Array, "B"],
    weight_B: Rows | None = None,
    *,
    keep: Scalar,
    forget: Scalar,
    cap: Scalar,
) -> masked.Mean:
    """L = mean [ w_s CE(y_w) - w_u min(CE(y_l), cap) ], CE = -log π(y|x) / |y|, nats per token. Needs no reference.

    What Makes and Breaks Safety Fine-tuning (arXiv 2407.10264), there without a cap and so without a lower bound, and divided by the
    length of the padded block. Past the cap an answer has no gradient.

    Args:
        tokens_BS: real tokens of each answer.
        keep, forget: w_s and w_u.
    """
    chex.assert_rank([logp_BS, tokens_BS, winner_B], [2, 2, 1])
    chex.assert_equal_shape([logp_BS, tokens_BS])
    winner_ce_B, loser_ce_B = winner_first(-per_token(logp_BS, tokens_BS), winner_B)
    loser_ce_B = jnp.where(loser_ce_B < cap, loser_ce_B, cap)
    weight_B = _weight(winner_ce_B, weight_B)
    return masked.weighted_mean(keep * winner_ce_B - forget * loser_ce_B, weight_B)


def kto(
    log_ratio_BS: Float[Array, "B S"],
    desirable_BS: Float[Array, "B S"],
    weight_BS: Float[Array, "B S"],
    baseline: Scalar | Float[Array, "B 1"],
    *,
    beta: Scalar | Float[Array, "B 1"],
    desirable_weight: Scalar,
    undesirable_weight: Scalar | Float[Array, "B 1"],
) -> masked.Mean:
    """L = mean over answers of w_D (1 - σ(β (ρ - z))) where desirable, w_U (1 - σ(β (z - ρ))) where not; ρ = log π/π_ref.

    KTO (Ethayarajh et al., arXiv 2402.01306); answers need no partner.

    Args:
        desirable_BS: 1 or 0.
        weight_BS: 0 for an answer without a flag: it takes no part.
        baseline: z of the whole batch, `kto_baseline`; the same in all microbatches.
        desirable_weight, undesirable_weight: w_D and w_U. They do not enter the count.
    """
    chex.assert_rank([log_ratio_BS, desirable_BS, weight_BS], 2)
    chex.assert_equal_shape([log_ratio_BS, desirable_BS, weight_BS])
    above_BS = beta * (masked.keep(log_ratio_BS, weight_BS > 0) - baseline)
    loss_BS = jnp.where(
        desirable_BS == 1, desirable_weight * jax.nn.sigmoid(-above_BS), undesirable_weight * jax.nn.sigmoid(above_BS)
    )
    return masked.weighted_mean(loss_BS.reshape(-1), weight_BS.reshape(-1))


def kto_baseline(total: Float[Array, ""], count: Float[Array, ""]) -> Float[Array, ""]:
    """z = max(0, mean of log π(y'|x)/π_ref(y'|x) over answers y' to OTHER prompts), nats, without gradient: a bound of KL(π || π_ref).

    Args:
        total, count: sum and number of these log-ratios, of all microbatches and hosts.
    """
    return jax.lax.stop_gradient(jnp.maximum(total / jnp.maximum(count, 1.0), 0.0))


def kto_numbers(
    log_ratio_BS: Float[Array, "B S"],
    desirable_BS: Float[Array, "B S"],
    weight_BS: Float[Array, "B S"],
    baseline: Scalar | Float[Array, "B 1"],
) -> dict[str, masked.Mean]:
    """Numbers for the log, (sum, count): accuracy (ρ > z where desirable, ρ < z where not), the mean ρ of desirable and of undesirable
    answers, and the share of desirable ones. The arguments are those of `kto`."""
    right_BS = jnp.where(desirable_BS == 1, log_ratio_BS > baseline, log_ratio_BS < baseline).astype(jnp.float32)
    values = {
        "accuracy": (right_BS, weight_BS),
        "desirable_log_ratio": (log_ratio_BS, weight_BS * desirable_BS),
        "undesirable_log_ratio": (log_ratio_BS, weight_BS * (1 - desirable_BS)),
        "share.desirable": (desirable_BS, weight_BS),
    }
    return {name: masked.weighted_mean(x_BS.reshape(-1), w_BS.reshape(-1)) for name, (x_BS, w_BS) in values.items()}


def numbers(
    winner_B: Rows, loser_B: Rows, unsafe_w_B: Rows, unsafe_l_B: Rows, weight_B: Rows | None = None, *, scale: Scalar
) -> dict[str, masked.Mean]:
    """Numbers for the log of any method, (sum, count): accuracy (h > 0), beta_h (scale h), winner_log_ratio and loser_log_ratio.

    A loss that fixes only h lets the winner's log-ratio fall as well: it is the one to watch. `share.safe_unsafe` and the like say
    what is known of the safety of (winner, loser).

    Args:
        winner_B, loser_B: of `log_ratios`.
        unsafe_w_B, unsafe_l_B: 1 unsafe, 0 safe, anything else unknown: such a pair is in no class.
    """
    weight_B = _weight(winner_B, weight_B)
    h_B = winner_B - loser_B
    values = {
        "accuracy": (h_B > 0).astype(jnp.float32),
        "beta_h": scale * h_B,
        "winner_log_ratio": winner_B,
        "loser_log_ratio": loser_B,
    }
    logged = {name: masked.weighted_mean(value_B, weight_B) for name, value_B in values.items()}
    for kind, (winner, loser) in CLASSES.items():
        inside_B = weight_B * ((unsafe_w_B == winner) & (unsafe_l_B == loser))
        logged[f"share.{kind}"] = (jnp.sum(inside_B), jnp.sum(weight_B))
    return logged


def _weight(x_B: Rows, weight_B: Rows | None) -> Rows:
    """The weights of rows, 1 where none are given; checks both."""
    weight_B = jnp.ones(x_B.shape, jnp.float32) if weight_B is None else weight_B
    chex.assert_rank([x_B, weight_B], 1)
    chex.assert_equal_shape([x_B, weight_B])
    chex.assert_type([x_B, weight_B], float)
    return weight_B


def _rows(value_B: Rows | Scalar, weight_B: Rows) -> Rows:
    """A number for each row, of one for all or of an array; 0 where the row takes no part."""
    return masked.keep(jnp.broadcast_to(jnp.asarray(value_B, jnp.float32), weight_B.shape), weight_B > 0)
