"""The leash of the policy to a reference: a coefficient that follows the KL, and a reference that follows the policy.

beta <- beta (1 + clip(KL / target - 1, -0.2, 0.2) B / horizon)       Ziegler et al., arXiv 1909.08593, section 2.2
pi_ref <- decay pi_ref + (1 - decay) pi                               a moving average; or a copy every n iterations
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from srlhfv_jax.config import PPOConfig, ReferenceConfig

STEP = 0.2  # of the relative error, at most


def start(ppo: PPOConfig) -> Float[Array, ""] | None:
    """beta of the first iteration; None where it stays as the settings have it."""
    return jnp.float32(ppo.kl_coef) if ppo.kl_target else None


def adapted(ppo: PPOConfig, kl_coef: Float[Array, ""], kl: Float[Array, ""], answers: int) -> Float[Array, ""]:
    """beta after a rollout of so many answers with this KL, in nats per answer."""
    error = jnp.clip(kl / ppo.kl_target - 1, -STEP, STEP)
    return kl_coef * (1 + error * (answers / ppo.kl_horizon))


def is_due(how: ReferenceConfig, done: int) -> bool:
    """Whether the reference moves after `done` iterations."""
    return how.decay > 0 or (how.every > 0 and done % how.every == 0)


def followed(decay: float, reference: Any, policy: Any) -> Any:
    """The next reference, in arrays of its own: the policy's are given away."""

    def mix(old: Array, new: Array) -> Array:
        mixed = decay * old.astype(jnp.float32) + (1 - decay) * new.astype(jnp.float32)
        return mixed.astype(old.dtype)

    return jax.tree.map(mix if decay else lambda old, new: jnp.copy(new), reference, policy)
