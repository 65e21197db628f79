"""Lengths as rows really have them, for benchmarks: drawn with a seed, the same on both sides of a comparison.

Answers of a policy are log-normal with a long tail: here a third of the longest allowed in the mean, and one in ten is cut there.
Those two numbers fix the curve (`SIGMA`: of the logarithm). Rows of PKU-SafeRLHF have about 130 tokens with their prompt.
"""

import math
from statistics import NormalDist

import numpy as np

CUT = 0.1  # share of answers that are cut at the longest length
SIGMA = 1.20877  # with it the mean is a third: see `mean_share`


def mean_share(sigma: float = SIGMA, cut: float = CUT) -> float:
    """The mean length over the longest: E[min(X, 1)] of a log-normal X with P(X > 1) = cut."""
    normal = NormalDist()
    mu = -normal.inv_cdf(1 - cut) * sigma
    return math.exp(mu + sigma**2 / 2) * normal.cdf((-mu - sigma**2) / sigma) + cut


def lengths(count: int, longest: int, seed: int = 0) -> np.ndarray:
    """So many lengths from 1 to `longest`."""
    mu = -NormalDist().inv_cdf(1 - CUT) * SIGMA
    drawn = longest * np.exp(np.random.default_rng(seed).normal(mu, SIGMA, count))
    return np.clip(np.ceil(drawn), 1, longest).astype(np.int32)
