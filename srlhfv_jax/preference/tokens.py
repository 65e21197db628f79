"""Tokens that count, by the value that a scorer's head gives each of them: those of the winner above a baseline, those of the loser
below it. The policy and its reference are both read at these alone (Equilibrate).

The value of a token is the head's score after it: the reward, or minus the cost.
"""

import numpy as np
from jaxtyping import Bool, Float

from srlhfv_jax.config.preference import TokensConfig
from srlhfv_jax.data import loader
from srlhfv_jax.errors import UserError
from srlhfv_jax.evaluation.score_metrics import COST
from srlhfv_jax.preference import reference, terms
from srlhfv_jax.preference.reference import Reader
from srlhfv_jax.preference.terms import Numbers

NONE_KEPT = "no_token_kept"


def apply(settings: TokensConfig, prepared: loader.Prepared, numbers: Numbers, reader: Reader) -> tuple[loader.Prepared, Numbers]:
    """The rows with their tokens that count; a pair of which one answer has none is dropped and counted (`no_token_kept`).

    Raises:
        UserError: none is left.
    """
    scores = reference.token_scores(settings.head, settings.scorer, prepared, reader)
    sign = -1.0 if settings.head == COST else 1.0
    sides = terms.winners(prepared.rows, numbers).tolist()
    every = [
        kept(tuple(sign * score_R for score_R in both), side, settings.baseline) for both, side in zip(scores, sides, strict=True)
    ]
    keep_N = np.array([all(kept_R.any() for kept_R in both) for both in every])
    if not keep_N.any():
        values = sign * np.concatenate([score_R for both in scores for score_R in both])
        raise UserError(
            f"config.tokens.baseline {settings.baseline:g} leaves no pair a token of both answers: values of tokens lie from {values.min():.3g} "
            f"to {values.max():.3g}"
        )
    rows = tuple(row._replace(kept=both) for row, both in zip(prepared.rows, every, strict=True))
    said = f"of its tokens none is above, or none below, {settings.baseline:g}"
    return terms.only(prepared._replace(rows=rows), numbers, keep_N, NONE_KEPT, said)


def kept(values: tuple[Float[np.ndarray, "R"], ...], winner: int, baseline: float) -> tuple[Bool[np.ndarray, "R"], ...]:
    """The tokens of each answer that count: value > b of the winner, value < b of the other."""
    return tuple(value_R > baseline if side == winner else value_R < baseline for side, value_R in enumerate(values))
