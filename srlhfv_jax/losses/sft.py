"""Supervised fine-tuning: the negative log-likelihood of the response. PPO's PTX term is the same function."""

from jaxtyping import Array, Bool, Float

from srlhfv_jax.losses import masked


def sft(logp_BR: Float[Array, "B R"], mask_BR: Bool[Array, "B R"]) -> masked.Mean:
    """L = - mean_t log pi(y_t | x, y_<t) over response tokens, the end-of-sequence token included; prompts do not count."""
    return masked.token_mean(-logp_BR, mask_BR)
