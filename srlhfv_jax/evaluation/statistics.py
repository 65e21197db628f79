"""Means over a subset of rows, their bootstrap standard errors and intervals; calibration error and sigmoid on the host.

Rows of one cell (the same concept and question in other renderings) stand or fall together, so the bootstrap resamples whole
groups (Davison & Hinkley, Bootstrap Methods, 1997, section 3.8); with one group per row it is the plain bootstrap.
"""

from collections.abc import Sequence

import chex
import numpy as np
from jaxtyping import Bool, Float

DRAWS = 1000  # the standard error is then itself known to about 2 %


def subset_mean(value_B: Float[np.ndarray, "B"], member_B: Bool[np.ndarray, "B"]) -> float | None:
    """Mean of the rows where `member_B`; None when there are none (an absent number is better than an invented one)."""
    chex.assert_equal_shape([value_B, member_B])
    return float(value_B[member_B].mean()) if member_B.any() else None


def sigmoid(value: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """1 / (1 + e^-value) in float64; does not overflow."""
    return np.exp(-np.logaddexp(0.0, -value.astype(np.float64)))


def calibration_error(probability_B: Float[np.ndarray, "B"], event_B: Bool[np.ndarray, "B"], bins: int) -> float:
    """ECE = sum_b n_b / n |share of events in b - mean probability in b| over equal bins (Guo et al., arXiv 1706.04599, eq. 3)."""
    chex.assert_equal_shape([probability_B, event_B])
    index_B = np.minimum((probability_B * bins).astype(np.int64), bins - 1)
    # |n_b share - n_b mean| / n: empty bins drop out by themselves
    gap = np.bincount(index_B, weights=event_B, minlength=bins) - np.bincount(index_B, weights=probability_B, minlength=bins)
    return float(np.abs(gap).sum() / len(event_B))


def bootstrap_error(
    value_B: Float[np.ndarray, "B"], member_B: Bool[np.ndarray, "B"], groups: Sequence[str], *, seed: int = 0
) -> float | None:
    """Standard error of `subset_mean`: its standard deviation over DRAWS resamplings of whole groups.

    Returns None when fewer than two groups have members: nothing can be resampled then.
    """
    means = _resampled(value_B, member_B, groups, seed)
    return None if means is None else float(means.std(ddof=1))


def bootstrap_interval(
    value_B: Float[np.ndarray, "B"], member_B: Bool[np.ndarray, "B"], groups: Sequence[str], *, level: float = 0.95, seed: int = 0
) -> tuple[float, float] | None:
    """Percentile interval of `subset_mean` over DRAWS resamplings of whole groups, as `bootstrap_error`; None where that is."""
    means = _resampled(value_B, member_B, groups, seed)
    if means is None:
        return None
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _resampled(
    value_B: Float[np.ndarray, "B"], member_B: Bool[np.ndarray, "B"], groups: Sequence[str], seed: int
) -> Float[np.ndarray, "draws"] | None:
    """The mean over the members in each resampling of whole groups; None when fewer than two groups have members."""
    chex.assert_rank([value_B, member_B], 1)
    if len(groups) != len(value_B):
        raise ValueError(f"bootstrap needs one group per row, got {len(groups)} groups for {len(value_B)} rows")
    names, index_B = np.unique(np.asarray(groups)[member_B], return_inverse=True)
    if len(names) < 2:
        return None
    totals = np.bincount(index_B, weights=value_B[member_B].astype(np.float64))
    counts = np.bincount(index_B).astype(np.float64)
    times_drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    return (times_drawn @ totals) / (times_drawn @ counts)
