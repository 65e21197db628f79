"""Proximal policy optimisation: the clipped policy and value losses (Schulman et al., arXiv 1707.06347), and variants of the first.

The advantage comes in as an array: with a constraint it is the combined one of `lagrangian.combine`, without it the reward's own.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from srlhfv_jax.losses import masked

# The log-ratio is clipped here before exp, far outside any trust region: an overflow would turn 0 * inf into NaN.
LOG_RATIO_BOUND = 20.0


def policy(
    logp_BR: Float[Array, "B R"],
    old_logp_BR: Float[Array, "B R"],
    adv_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    clip_ratio: float,
    reduction: str,
    clip_ratio_high: float = 0.0,
    dual_clip: float = 0.0,
    objective: str = "ratio",
    weight_BR: Float[Array, "B R"] | None = None,
) -> masked.Loss:
    """L = - mean_t min( ρ_t A_t, clip(ρ_t, 1-ε, 1+ε) A_t ), ρ_t = pi(y_t) / pi_old(y_t). Equation 7 of the paper.

    Args:
        reduction: "token": mean over all tokens; "sequence": mean over each sequence first, as Safe RLHF does; "fixed": a sum over
            all tokens, divided by B R.
        clip_ratio_high: ε above 1, where it is another one (DAPO, arXiv 2503.14476); 0: the same.
        dual_clip: c > 1 bounds the loss where A < 0 by c |A|, however large ρ is (Ye et al., arXiv 1912.09729, equation 5); 0: off.
        objective: "log": log ρ in the place of ρ, clipped to log(1-ε) and log(1+ε), so that a token's gradient is A grad log pi
            without an importance weight (CPGD, arXiv 2505.12504).
        weight_BR: of each token's term; no gradient goes through it.
    """
    arrays = [logp_BR, old_logp_BR, adv_BR, mask_BR]
    chex.assert_rank(arrays, 2)
    chex.assert_equal_shape(arrays)
    chex.assert_type(arrays, [float, float, float, bool])

    log_ratio_BR = _log_ratio(logp_BR, old_logp_BR, mask_BR)
    ratio_BR = jnp.exp(log_ratio_BR)
    low, high = 1 - clip_ratio, 1 + (clip_ratio_high or clip_ratio)
    clipped_BR = jnp.clip(ratio_BR, low, high)
    adv_BR = masked.keep(adv_BR, mask_BR)
    if objective == "ratio":
        gain_BR = jnp.minimum(ratio_BR * adv_BR, clipped_BR * adv_BR)
    elif objective == "log":
        gain_BR = jnp.minimum(log_ratio_BR * adv_BR, jnp.clip(log_ratio_BR, math.log(low), math.log(high)) * adv_BR)
    else:
        raise ValueError(f"objective must be 'ratio' or 'log', got {objective!r}")
    if dual_clip:
        gain_BR = jnp.where(adv_BR < 0, jnp.maximum(gain_BR, dual_clip * adv_BR), gain_BR)
    if weight_BR is not None:
        gain_BR = gain_BR * masked.keep(jax.lax.stop_gradient(weight_BR), mask_BR)
    total, count = masked.reduce(-gain_BR, mask_BR, reduction)

    row_max_BR = jnp.broadcast_to(jnp.max(masked.keep(ratio_BR, mask_BR), axis=1)[:, None], ratio_BR.shape)
    metrics = {
        "clip_fraction": masked.token_mean((ratio_BR != clipped_BR).astype(jnp.float32), mask_BR),
        # k3 = ρ - 1 - log ρ: unbiased for KL(pi_old || pi) under pi_old, never negative (Schulman, joschu.net/blog/kl-approx).
        "approx_kl": masked.token_mean(ratio_BR - 1 - log_ratio_BR, mask_BR),
        "ratio": masked.token_mean(ratio_BR, mask_BR),
        "ratio_row_max": masked.sequence_mean(row_max_BR, mask_BR),  # each row's largest ratio, mean over rows
        "log_ratio_abs": masked.token_mean(jnp.abs(log_ratio_BR), mask_BR),
    }
    if dual_clip:
        bounded_BR = (adv_BR < 0) & (ratio_BR > dual_clip)
        metrics["dual_clip_fraction"] = masked.token_mean(bounded_BR.astype(jnp.float32), mask_BR)
    return masked.Loss(total, count, metrics)


def penalty(
    logp_BR: Float[Array, "B R"],
    old_logp_BR: Float[Array, "B R"],
    cost_adv_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    excess: Float[Array, ""],
    *,
    clip_ratio: float,
) -> Float[Array, ""]:
    """max(0, L_c), L_c = mean_t max( ρ_t A_c,t, clip(ρ_t, 1-ε, 1+ε) A_c,t ) + (J - d) / n: a bound of the next policy's cost over budget.

    P3O (arXiv 2205.11814, equations 14 and 16), for gamma = 1: there their factor 1 - gamma would delete the budget, so that J - d is
    spread over the n tokens of a mean answer. All rows of a step at once: the maximum is of the whole mean.

    Args:
        excess: J - d.
    """
    log_ratio_BR = _log_ratio(logp_BR, old_logp_BR, mask_BR)
    ratio_BR, adv_BR = jnp.exp(log_ratio_BR), masked.keep(cost_adv_BR, mask_BR)
    clipped_BR = jnp.clip(ratio_BR, 1 - clip_ratio, 1 + clip_ratio)
    total, tokens = masked.token_mean(jnp.maximum(ratio_BR * adv_BR, clipped_BR * adv_BR), mask_BR)
    return jnp.maximum(total / tokens + excess * len(mask_BR) / tokens, 0.0)


def importance(
    logp_BR: Float[Array, "B R"], sampler_logp_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], *, cap: float
) -> Float[Array, "B R"]:
    """min(pi_trainer / pi_sampler, cap) of each token: weights for what a sampler drew with other rounding than the trainer's
    (truncated importance sampling, Ionides 2008). 0 off the mask."""
    log_ratio_BR = _log_ratio(logp_BR, sampler_logp_BR, mask_BR)
    return masked.keep(jnp.minimum(jnp.exp(log_ratio_BR), cap), mask_BR)


def kl(
    logp_BR: Float[Array, "B R"], ref_logp_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"], *, reduction: str
) -> masked.Mean:
    """k3 = π_ref / π - 1 - log π_ref / π of each token: of the policy's own samples unbiased for KL(π || π_ref), and never negative.

    GRPO (arXiv 2402.03300), equation 4.
    """
    log_ratio_BR = _log_ratio(ref_logp_BR, logp_BR, mask_BR)
    return masked.reduce(jnp.exp(log_ratio_BR) - 1 - log_ratio_BR, mask_BR, reduction)


def value(
    value_BR: Float[Array, "B R"],
    old_value_BR: Float[Array, "B R"],
    return_BR: Float[Array, "B R"],
    mask_BR: Bool[Array, "B R"],
    *,
    clip_value: float,
    reduction: str,
) -> masked.Loss:
    """L = ½ mean_t max( (V_t - Ret_t)², (V_old,t + clip(V_t - V_old,t, ±ε_V) - Ret_t)² ).

    The larger of the two: a critic that has already moved by ε_V in the right direction gets no further push from this rollout.
    """
    arrays = [value_BR, old_value_BR, return_BR, mask_BR]
    chex.assert_rank(arrays, 2)
    chex.assert_equal_shape(arrays)
    chex.assert_type(arrays, [float, float, float, bool])

    value_BR, old_value_BR, return_BR = (masked.keep(x, mask_BR) for x in (value_BR, old_value_BR, return_BR))
    clipped_BR = old_value_BR + jnp.clip(value_BR - old_value_BR, -clip_value, clip_value)
    error_BR, clipped_error_BR = (value_BR - return_BR) ** 2, (clipped_BR - return_BR) ** 2
    total, count = masked.reduce(0.5 * jnp.maximum(error_BR, clipped_error_BR), mask_BR, reduction)
    metrics = {
        "clip_fraction": masked.token_mean((clipped_error_BR > error_BR).astype(jnp.float32), mask_BR),
        "value": masked.token_mean(value_BR, mask_BR),
        "return": masked.token_mean(return_BR, mask_BR),
    }
    return masked.Loss(total, count, metrics)


def explained_variance(
    value_BR: Float[Array, "B R"], return_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]
) -> Float[Array, ""]:
    """1 - Var[Ret - V] / Var[Ret] over true positions: 1 = perfect, 0 = no better than a constant, and 0 if Ret is constant."""
    left = _variance(return_BR - value_BR, mask_BR)
    whole = _variance(return_BR, mask_BR)
    return jnp.where(whole > 0, 1 - left / jnp.where(whole > 0, whole, 1.0), 0.0)


def _log_ratio(logp_BR: Float[Array, "B R"], other_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]) -> Float[Array, "B R"]:
    """log pi - log pi_other within LOG_RATIO_BOUND; 0 off the mask."""
    return jnp.clip(masked.keep(logp_BR - other_BR, mask_BR), -LOG_RATIO_BOUND, LOG_RATIO_BOUND)


def _variance(x_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]) -> Float[Array, ""]:
    total, count = masked.token_mean(x_BR, mask_BR)
    count = jnp.maximum(count, 1.0)
    return masked.token_mean((x_BR - total / count) ** 2, mask_BR)[0] / count
