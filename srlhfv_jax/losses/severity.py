"""The guard's two losses: how severe (ordinal), and of which kinds (multi-label). Our own design: Beaver-Guard-V's is not published.

Class weights even out rare classes while training; `shift` says by how much they moved a bias, so that it can be taken back and
probabilities are again those of the data.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from srlhfv_jax.losses import masked

MAX_CLASS_WEIGHT = (
    10.0  # a class never weighs more than this many times the mean: a handful of rows would set the direction of every step
)


def binary(
    logit_BA: Float[Array, "B A"],
    label_BA: Bool[Array, "B A"],
    known_BA: Bool[Array, "B A"],
    weight_2A: Float[Array, "2 A"],
) -> masked.Loss:
    """L = mean over known (b, a) of w[y_ba, a] * (-log σ((2 y_ba - 1) z_ba)): independent yes-or-no questions about each row.

    For severity z_bj = s_b + c_j, one score s and one bias for each threshold, and y_bj = [severity_b > j]: the rank-consistent
    ordinal regression CORAL (Cao, Mirjalili, Raschka, arXiv 1901.07884, equation 3), a cumulative-link model. A row known to be
    unsafe but not how severely takes part at the first threshold alone. For categories every a has a direction of its own.

    Args:
        label_BA: y; read only where known.
        known_BA: false: no gradient, not counted.
        weight_2A: w, of "no" and of "yes".
    """
    chex.assert_rank([logit_BA, label_BA, known_BA, weight_2A], 2)
    chex.assert_equal_shape([logit_BA, label_BA, known_BA])
    chex.assert_shape(weight_2A, (2, logit_BA.shape[1]))
    chex.assert_type([logit_BA, label_BA, known_BA, weight_2A], [float, bool, bool, float])

    logit_BA = masked.keep(logit_BA, known_BA)
    weight_BA = jnp.where(label_BA, weight_2A[1], weight_2A[0])
    log_likelihood_BA = jax.nn.log_sigmoid(jnp.where(label_BA, logit_BA, -logit_BA))
    total, count = masked.token_mean(-weight_BA * log_likelihood_BA, known_BA)
    right_BA = ((logit_BA > 0) == label_BA).astype(jnp.float32)
    return masked.Loss(total, count, {"accuracy": masked.token_mean(right_BA, known_BA)})


def balance(label_BA: Bool[np.ndarray, "B A"], known_BA: Bool[np.ndarray, "B A"]) -> Float[np.ndarray, "2 A"]:
    """Weights that give "no" and "yes" the same total in each column: n / (2 n_y), at most MAX_CLASS_WEIGHT; 1 where a class has no row."""
    chex.assert_equal_shape([label_BA, known_BA])
    count_2A = np.stack([(known_BA & ~label_BA).sum(0), (known_BA & label_BA).sum(0)]).astype(np.float32)
    weight_2A = count_2A.sum(0) / (2 * np.maximum(count_2A, 1))
    return np.where((count_2A > 0).all(0), np.minimum(weight_2A, MAX_CLASS_WEIGHT), 1.0).astype(np.float32)


def log_odds(
    label_BA: Bool[np.ndarray, "B A"], known_BA: Bool[np.ndarray, "B A"], weight_2A: Float[np.ndarray, "2 A"]
) -> Float[np.ndarray, "A"]:
    """log(w_1 n_1 / (w_0 n_0)): the best logits that know nothing of a row, where biases start. Half a row is added to each class."""
    chex.assert_equal_shape([label_BA, known_BA])
    count_2A = np.stack([(known_BA & ~label_BA).sum(0), (known_BA & label_BA).sum(0)]) + 0.5
    return (np.log(count_2A[1] / count_2A[0]) + shift(weight_2A)).astype(np.float32)


def shift(weight_2A: Float[np.ndarray, "2 A"]) -> Float[np.ndarray, "A"]:
    """log(w_1 / w_0): the weighted likelihood's best logit is the unweighted one's plus this."""
    return np.log(weight_2A[1] / weight_2A[0]).astype(np.float32)
