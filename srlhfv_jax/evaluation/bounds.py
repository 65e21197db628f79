"""Upper confidence bounds of a mean: with probability at least 1 - error the true mean lies at or below the bound.

They hold for every sample size and every distribution on [low, high], for values drawn independently of each other. `values_B` are
in an order that was chosen without looking at them (`betting` walks along it).

hoeffding             mean + (high - low) sqrt(ln(1/error) / 2n)                                    Hoeffding, 1963
empirical_bernstein   mean + sqrt(2 V ln(2/error) / n) + 7 (high - low) ln(2/error) / 3(n - 1)      Maurer & Pontil, arXiv 0907.3740, th. 4
clopper_pearson       the quantile 1 - error of Beta(k + 1, n - k), k ones in n: exact              Clopper & Pearson, 1934
betting               the largest mean against which a gambler does not get 1/error times rich      Waudby-Smith & Ramdas, arXiv 2010.09686
prediction_powered    scores of all answers, corrected by the labels of some                        Angelopoulos et al., arXiv 2301.09633
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import chex
import numpy as np
from jaxtyping import Float
from scipy.special import betaincinv

from srlhfv_jax.config import choose

HOEFFDING, BERNSTEIN, CLOPPER_PEARSON, BETTING = "hoeffding", "empirical_bernstein", "clopper_pearson", "betting"
SAMPLE = (HOEFFDING, BERNSTEIN, CLOPPER_PEARSON, BETTING)  # bounds of one sample
BOLDEST = 0.75  # share of the capital that a bet may lose (Waudby-Smith & Ramdas, section 4)
SHARE_OF_SCORES = 0.2  # of the error, for the mean of the scores: there are many more of them than labels
MOST = 10**5  # the largest sample whose bound is worked out
HALVINGS = 60  # of an interval, to the last bit

Values = Annotated[Float[np.ndarray, "B"], "in an order that does not depend on them"]


class Interval(NamedTuple):
    """The least and the largest value there can be."""

    low: float
    high: float

    @property
    def width(self) -> float:
        return self.high - self.low


UNIT = Interval(0.0, 1.0)


def upper(method: str, values_B: Values, error: float, interval: Interval = UNIT) -> float:
    """One of SAMPLE by its name; at most `interval.high`."""
    bound = {HOEFFDING: hoeffding, BERNSTEIN: empirical_bernstein, BETTING: betting, CLOPPER_PEARSON: _ones}[
        choose(method, "the bound", *SAMPLE)
    ]
    return min(bound(values_B, error, interval), interval.high)


def hoeffding(values_B: Values, error: float, interval: Interval = UNIT) -> float:
    """The bound that knows nothing but the interval."""
    _check(values_B, error, interval)
    return float(values_B.mean() + interval.width * math.sqrt(-math.log(error) / (2 * len(values_B))))


def empirical_bernstein(values_B: Values, error: float, interval: Interval = UNIT) -> float:
    """The bound that is narrow where the sample variance V is small."""
    _check(values_B, error, interval)
    count, log = len(values_B), math.log(2 / error)
    spread = math.sqrt(2 * float(values_B.var(ddof=1)) * log / count)
    return float(values_B.mean() + spread + 7 * interval.width * log / (3 * (count - 1)))


def clopper_pearson(ones: int, count: int, error: float) -> float:
    """The exact bound of a probability, from `ones` events in `count` trials: p with P(Binomial(count, p) <= ones) = error."""
    if not (0 <= ones <= count and count >= 1):
        raise ValueError(f"expected 0 <= ones <= count, got {ones} of {count}")
    return 1.0 if ones == count else float(betaincinv(ones + 1, count - ones, 1 - error))


def betting(values_B: Values, error: float, interval: Interval = UNIT) -> float:
    """The bound of a gambler who bets that the mean is below m, at fair odds if it is m.

    With x in [0, 1] the capital is K_t(m) = prod_{i<=t} (1 - b_i (x_i - m) / (1 - m)), where the bet b_i in [0, BOLDEST] is chosen from
    x_1 .. x_{i-1}. If the mean is m or more, K is a supermartingale from 1, so that P(max_t K_t(m) >= 1/error) <= error (Ville). K grows
    with m, and the bound is the m at which its maximum is 1/error. The bets are those of Waudby-Smith & Ramdas for a sample of this
    size (equation 26), b = (1 - mean) sqrt(2 ln(1/error) / (n variance)).
    """
    _check(values_B, error, interval)
    x_B = (np.asarray(values_B, np.float64) - interval.low) / interval.width
    count = np.arange(1, len(x_B) + 1)
    mean_B = (0.5 + np.cumsum(x_B)) / (count + 1)
    variance_B = (0.25 + np.cumsum((x_B - mean_B) ** 2)) / (count + 1)
    before_mean_B, before_variance_B = np.r_[0.5, mean_B[:-1]], np.r_[0.25, variance_B[:-1]]
    bet_B = np.minimum((1 - before_mean_B) * np.sqrt(-2 * math.log(error) / (len(x_B) * before_variance_B)), BOLDEST)

    def is_rich(m: float) -> bool:
        return float(np.cumsum(np.log1p(-bet_B * (x_B - m) / (1 - m))).max()) >= -math.log(error)

    poor, rich = 0.0, 1.0  # at m -> 1 the gambler who bets at all gets as rich as you like, unless every x is 1
    for _ in range(HALVINGS):
        middle = (poor + rich) / 2
        poor, rich = (poor, middle) if middle < 1 and is_rich(middle) else (middle, rich)
    return max(interval.low + interval.width * rich, float(values_B.mean()))


class Corrected(NamedTuple):
    """A mean of labels that few answers have, by scores that all have."""

    mean: float
    upper: float
    bias: float  # mean of label - score


def prediction_powered(
    score_B: Values, labels_n: Values, scores_n: Values, error: float, interval: Interval = UNIT, score_interval: Interval = UNIT
) -> Corrected:
    """E[y] = E[f] + E[y - f]: the mean of the scores f of all answers, and of what they are wrong by, each with a bound of its own.

    Half of the error goes to this sum, SHARE_OF_SCORES of the half to its first term, and half to the bound of the labels by themselves,
    which is the lower one where scores are poor. No limit theorem is needed, and the scores may be as wrong as they like.

    Args:
        score_B: f of all answers, those with labels included.
        labels_n, scores_n: y and f of the answers with labels, which were chosen without looking at the answers.
    """
    chex.assert_equal_shape([labels_n, scores_n])
    gap = Interval(interval.low - score_interval.high, interval.high - score_interval.low)
    bias_n = labels_n - scores_n
    scores = _narrowest(score_B, SHARE_OF_SCORES * error / 2, score_interval)
    bias = upper(BETTING, bias_n, (1 - SHARE_OF_SCORES) * error / 2, gap)
    mean_bias = float(bias_n.mean())
    return Corrected(float(score_B.mean()) + mean_bias, min(scores + bias, _narrowest(labels_n, error / 2, interval)), mean_bias)


def sample_needed(bound: Callable[[int], float], count: int, budget: float, most: int = MOST) -> int | None:
    """The least sample size, up to `most`, whose bound is within the budget; None: there is none.

    Args:
        bound: sample size -> the bound of a sample of that size that looks like the one at hand (`repeated`).
        count: the size of the one at hand.
    """
    enough = count
    while bound(enough) > budget:
        if enough >= most:
            return None
        enough = min(2 * enough, most)
    short = max(count - 1, enough // 2)
    while enough - short > 1:
        middle = (enough + short) // 2
        short, enough = (middle, enough) if bound(middle) > budget else (short, middle)
    return enough


def repeated(values_B: Float[np.ndarray, "B"], count: int) -> Float[np.ndarray, "count"]:
    """A sample of another size that looks like this one: its quantiles, shuffled."""
    places = np.floor((np.arange(count) + 0.5) * len(values_B) / count).astype(np.int64)
    return np.random.default_rng(0).permutation(np.sort(values_B)[places])


def _narrowest(values_B: Values, error: float, interval: Interval) -> float:
    """The exact bound where values can be events, else that of betting."""
    is_event = interval == UNIT and bool(np.isin(values_B, (0.0, 1.0)).all())
    return upper(CLOPPER_PEARSON if is_event else BETTING, values_B, error, interval)


def _ones(values_B: Values, error: float, interval: Interval) -> float:
    _check(values_B, error, interval)
    if interval != UNIT or not np.isin(values_B, (0.0, 1.0)).all():
        raise ValueError("clopper_pearson is for values of 0 and 1")
    return clopper_pearson(int(values_B.sum()), len(values_B), error)


def _check(values_B: Sequence[float] | np.ndarray, error: float, interval: Interval) -> None:
    chex.assert_rank(values_B, 1)
    if len(values_B) < 2:
        raise ValueError(f"a bound needs at least 2 values, got {len(values_B)}")
    if not 0 < error < 1:
        raise ValueError(f"the error must lie between 0 and 1, got {error}")
    if not (interval.low < interval.high and values_B.min() >= interval.low and values_B.max() <= interval.high):
        raise ValueError(f"values must lie in [{interval.low}, {interval.high}], got {values_B.min()} to {values_B.max()}")
