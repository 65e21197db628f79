"""Checks on the first rollout, before any update is paid for: sampler and training graph must agree.

A wrong position, mask, temperature, placeholder or cache shows here as a log ratio that is not rounding error.
"""

import jax
import jax.numpy as jnp
import numpy as np

from srlhfv_jax.batches import NO_FEATURE, Images, Rollout
from srlhfv_jax.errors import UserError
from srlhfv_jax.models import sequences
from srlhfv_jax.models.config import VLMConfig
from srlhfv_jax.parallel import hosts
from srlhfv_jax.rollout.generate import Vocabulary

FLOAT32_LIMIT = 1e-4  # largest |log ratio| of any token
BFLOAT16_LIMIT = 0.02  # mean |log ratio|
# So many times a limit may still be rounding, of a deep model or a long answer. A wrong graph is further off: on a tiny random
# model positions one off, a token unseen, pads seen or another row's picture made a mean of 0.43 to 0.52, temperature 0.8 one of 0.19.
ROUNDING = 5


def placeholders(config: VLMConfig, rollout: Rollout, images: Images) -> None:
    """Every row has as many image placeholders as features, or none, all in the prompt. Takes host arrays.

    Raises:
        UserError: naming the first row that does not.
    """
    R = rollout.response_mask_BR.shape[1]
    is_image_BT = (rollout.tokens_BT == config.image_token) & rollout.mask_BT
    count_B = is_image_BT.sum(axis=1)
    if images.order_BM is not None:
        features_B = np.sum(images.order_BM != NO_FEATURE, axis=1)
    elif images.picture_BN is not None:
        features_B = np.sum(images.picture_BN > 0, axis=1) // config.vision.merge**2
    else:  # all pictures have one size, and nothing says how many a row has: the next whole number of them
        features_B = np.maximum(-(-count_B // config.vision.features), 1) * config.vision.features
    wrong = np.flatnonzero((count_B != 0) & (count_B != features_B) | is_image_BT[:, -R:].any(axis=1))
    if wrong.size:
        raise UserError(
            f"self-test: row {wrong[0]} of the first rollout has {count_B[wrong[0]]} image placeholders, expected 0 or "
            f"{features_B[wrong[0]]} in the prompt; check the processor's image_seq settings against the model"
        )


def ratio(config: VLMConfig, policy, rollout: Rollout, *, temperature: float, vocabulary: Vocabulary, recompute: bool) -> float:
    """Largest (float32) or mean (bfloat16) |log pi_train - log pi_sampler| over the rollout's tokens.

    Args:
        recompute: PPO's ratios will not read the sampler's log-probabilities: a gap of the size of rounding is a warning then.

    Raises:
        UserError: above the limit; with `recompute` when it is more than rounding.
    """

    def difference(policy, rollout):
        logp_BR, _ = sequences.response_logp(
            config,
            policy,
            rollout,
            rollout.features,
            temperature=temperature,
            never_V=vocabulary.never_V(config.text.vocab),
        )
        gap_BR = jnp.where(rollout.response_mask_BR, jnp.abs(logp_BR - rollout.logp_BR), 0.0)
        return jnp.max(gap_BR), jnp.sum(gap_BR) / jnp.sum(rollout.response_mask_BR)

    largest, mean = (float(x) for x in jax.jit(difference)(policy, rollout))
    exact = config.dtype == "float32"
    value, limit = (largest, FLOAT32_LIMIT) if exact else (mean, BFLOAT16_LIMIT)
    if value <= limit:
        return value
    text = (
        f"self-test: {'largest' if exact else 'mean'} |log ratio| between sampler and training graph is {value:.2e}, expected <= "
        f"{limit:g}"
    )
    if not value <= ROUNDING * limit:
        raise UserError(f"{text}; that is no rounding of {config.dtype}: look for a mismatch of masks, positions or temperature")
    if not recompute:
        raise UserError(
            f"{text}; rounding of {config.dtype} may be so large: --config.rollout.old_logp=recompute corrects for it"
        )
    hosts.say(
        f"warning: {text}; rounding of {config.dtype} may be so large, and config.rollout.old_logp=recompute corrects for it"
    )
    return value


def self_kl(policy_logp_BR, ref_logp_BR, mask_BR, *, exact: bool) -> float:
    """KL of the policy to a reference that is equal to it: zero up to rounding.

    Raises:
        UserError: it is not, so the reference was loaded or scored differently.
    """
    gap = float(jnp.max(jnp.where(mask_BR, jnp.abs(policy_logp_BR - ref_logp_BR), 0.0)))
    limit = FLOAT32_LIMIT if exact else 1.0
    if not gap <= limit:
        raise UserError(
            f"self-test: the reference equals the policy, but their log-probabilities differ by {gap:.2e} (expected <= {limit:g}); "
            "the two were loaded with different settings"
        )
    return gap
