"""The guard's two heads on a backbone's hidden state at the end of a question or of its answer. Linear, in float32, with biases.

    severity    one direction and three biases: logit of P(severity > k), k = safe, minor, moderate (losses/severity.py)
    categories  a direction and a bias for each category of a taxonomy

The severity's direction is a score as reward and cost are, so that all three may lie on one backbone; the biases make levels of it.
"""

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from srlhfv_jax.data.taxonomies import LEVELS
from srlhfv_jax.losses import products
from srlhfv_jax.models.config import VLMConfig

Heads = dict[str, dict[str, Array]]


def init(config: VLMConfig, categories: int, key: Array) -> Heads:
    """Normal with standard deviation 1 / sqrt(D + 1), as score heads; biases 0."""
    D = config.text.width
    one, other = jax.random.split(key)
    scale = (D + 1) ** -0.5
    return {
        "severity": {"kernel": jax.random.normal(one, (D,)) * scale, "bias": jnp.zeros(LEVELS)},
        "categories": {"kernel": jax.random.normal(other, (categories, D)) * scale, "bias": jnp.zeros(categories)},
    }


def logits(heads: Heads, hidden_BQD: Float[Array, "B Q D"]) -> tuple[Float[Array, "B Q J"], Float[Array, "B Q A"]]:
    """Logits of P(severity > k) and of each category."""
    chex.assert_rank(hidden_BQD, 3)
    severity, categories = heads["severity"], heads["categories"]
    score_BQ = products.float32(hidden_BQD, severity["kernel"])
    category_BQA = products.float32(hidden_BQD, categories["kernel"].T)
    return score_BQ[..., None] + severity["bias"][None, None], category_BQA + categories["bias"][None, None]
