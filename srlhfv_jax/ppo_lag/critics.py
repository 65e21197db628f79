"""The start of the critics, and the time in which they learn alone.

A critic starts as a copy of the scorer, whose head knows end scores. Its returns are other numbers: f(C) where C is meant, with
KL, penalties and perhaps another scale; and it reads prefixes, of which the scorer has learned nothing. So the first rollout fits
each head, before anything is trained. Measured on the embedded task (128 prompts; on other rollouts than the one fitted to): this
explains .44 to .55 of the variance of the cost's returns for each statistic and .21 to .25 of the reward's; a line through the
scorer's own outputs .09 to .15 and 0; the copy .05 to .13 of the mean cost's, -.28 to -.56 where it is rectified, below -4 for the
probability, and -.35 to -.60 of the reward's.
"""

from typing import Mapping, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from srlhfv_jax.batches import Experience, Images
from srlhfv_jax.losses import gae, masked
from srlhfv_jax.ppo_lag import experience, roles
from srlhfv_jax.ppo_lag.static import Static

RIDGE = 1.0  # with 8, 32 and 128 prompts as good on other rollouts as what cross-validation chose


class WarmUp(NamedTuple):
    """Progress of the critics' warm-up; part of every checkpoint."""

    best: Float[Array, ""]  # the highest explained variance so far, mean of all critics
    ended: Bool[Array, ""]


def init() -> WarmUp:
    return WarmUp(jnp.float32(-jnp.inf), jnp.bool_(False))


def after(warm_up: WarmUp, explained: Float[Array, ""]) -> WarmUp:
    """It ends with the first rollout whose explained variance is not above that of all before."""
    return WarmUp(jnp.maximum(warm_up.best, explained), warm_up.ended | (explained <= warm_up.best))


def start(static: Static, trees: Mapping[str, dict], rollout: Experience, images: Images | None) -> dict[str, dict]:
    """Tree name -> its heads, fitted to the returns of a rollout. A return is the sum of the token rewards, or costs, to come.

    Args:
        trees: those that hold the critics, with their backbones.
        rollout: scored.
    """
    mask_BR, gamma = rollout.rollout.response_mask_BR, static.settings.ppo.gamma
    heads: dict[str, dict] = {name: dict(tree["heads"]) for name, tree in trees.items()}
    hidden_BRD = experience.hidden(static, trees, rollout.rollout, images)
    for role in roles.critics(static.places):
        (tree, head), token_BR = static.places[role], rollout.token_BR[role]
        _, return_BR = gae.gae(token_BR, jnp.zeros_like(token_BR), mask_BR, gamma=gamma, gae_lambda=1.0)
        heads[tree][head] = fit(heads[tree][head]["kernel"], hidden_BRD[tree], return_BR, mask_BR)
    return heads


def fit(
    kernel_D: Float[Array, "D"], hidden_BRD: Float[Array, "B R D"], y_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]
) -> dict[str, Array]:
    """A head whose w h + b is near y at true positions: least squares, held to the line a (kernel h) + b of least squares.

    w = argmin  sum_t (w h_t + b - y_t)^2 + RIDGE p |w - a kernel|^2,        p = sum_t |h_t|^2 / D

    Closed form in float32. With p the answer depends on no unit, and its equations stay far from singular.
    """
    chex.assert_equal_shape([y_BR, mask_BR])
    chex.assert_type([y_BR, mask_BR], [float, bool])
    D, exact = kernel_D.size, jax.lax.Precision.HIGHEST
    x_BRE = jnp.concatenate([jnp.ones_like(y_BR)[..., None], hidden_BRD.astype(jnp.float32)], axis=2)  # E = 1 + D, the bias first
    x_BRE = jnp.where(mask_BR[..., None], x_BRE, 0.0)
    gram_EE = jnp.einsum("bre,brf->ef", x_BRE, x_BRE, precision=exact)
    moment_E = jnp.einsum("bre,br->e", x_BRE, masked.keep(y_BR, mask_BR), precision=exact)
    line_E2 = jnp.stack([jnp.eye(1 + D)[0], jnp.pad(kernel_D.astype(jnp.float32), (1, 0))], axis=1)
    two = (jnp.einsum("ei,ef,fj->ij", line_E2, gram_EE, line_E2, precision=exact), jnp.matmul(moment_E, line_E2, precision=exact))
    start_E = jnp.matmul(line_E2, jnp.linalg.lstsq(*two)[0], precision=exact)
    power = (jnp.trace(gram_EE) - gram_EE[0, 0]) / D
    held_EE = gram_EE + jnp.diag(jnp.pad(jnp.full(D, RIDGE * power), (1, 0)))
    moved_E = jax.scipy.linalg.solve(held_EE, moment_E - jnp.matmul(gram_EE, start_E, precision=exact), assume_a="pos")
    return {"kernel": (start_E + moved_E)[1:], "bias": (start_E + moved_E)[0]}
