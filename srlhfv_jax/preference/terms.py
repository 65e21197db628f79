"""From labels and numbers of models to what the loss reads of each pair. NumPy in, `data.collate.Terms` out.

Here all methods differ; behind it there are arrays (losses/preference.py has their table).
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from srlhfv_jax.config import PreferenceConfig
from srlhfv_jax.data import loader, mixtures
from srlhfv_jax.data.collate import Terms
from srlhfv_jax.data.drops import Dropped
from srlhfv_jax.data.tokens import Encoded
from srlhfv_jax.errors import UserError
from srlhfv_jax.losses import preference

NOT_FINITE = "non_finite_score"


class Numbers(NamedTuple):
    """Numbers of models of both answers of every row; None where the settings ask for none."""

    reference_NS: Float[np.ndarray, "N A"] | None = None  # log pi_ref; A = 3 with an answer to another prompt
    margin_NS: Float[np.ndarray, "N 2"] | None = None  # log-ratio of a policy that was trained for a second objective
    score_NS: Float[np.ndarray, "N 2"] | None = None  # that says who wins


def finite(prepared: loader.Prepared, numbers: Numbers) -> tuple[loader.Prepared, Numbers]:
    """The rows whose numbers are all finite, with these; the others are dropped and counted (`non_finite_score`).

    Raises:
        UserError: none is left.
    """
    given = {name: values for name, values in numbers._asdict().items() if values is not None}
    keep_N = np.ones(len(prepared.rows), bool)
    for values in given.values():
        keep_N &= np.isfinite(values).all(axis=1)
    if not keep_N.any():
        raise UserError(
            "a model gives every pair a number that is not finite: look at config.reference and the other models, or use float32"
        )
    return only(prepared, numbers, keep_N, NOT_FINITE, "a number of a model is not finite")


def only(
    prepared: loader.Prepared, numbers: Numbers, keep_N: Bool[np.ndarray, "N"], reason: str, detail: str
) -> tuple[loader.Prepared, Numbers]:
    """Some of the rows, with their numbers; the others are dropped and counted for a reason, of which something is said."""
    if keep_N.all():
        return prepared, numbers
    left = tuple(row for row, keep in zip(prepared.rows, keep_N, strict=True) if keep)
    dropped = tuple(Dropped(row.row, reason, detail) for row, keep in zip(prepared.rows, keep_N) if not keep)
    prepared = prepared._replace(
        rows=left,
        dropped=prepared.dropped + dropped,
        drops=prepared.drops + Counter({reason: len(dropped)}),
        shares=mixtures.only(prepared.shares, keep_N),
    )
    given = {name: values for name, values in numbers._asdict().items() if values is not None}
    return prepared, numbers._replace(**{name: values[keep_N] for name, values in given.items()})


def winners(rows: tuple[Encoded, ...], numbers: Numbers) -> Int[np.ndarray, "N"]:
    """The side that wins each pair: of the higher score, or as labelled."""
    if numbers.score_NS is not None:
        return np.argmax(numbers.score_NS, axis=1)
    return np.array([row.example.chosen or 0 for row in rows], np.int64)


def make(settings: PreferenceConfig, rows: tuple[Encoded, ...], numbers: Numbers, undesirable: float = 1.0) -> tuple[Terms, ...]:
    """The terms of each row.

    Args:
        undesirable: weight of unsafe answers, where answers are not compared with each other.
    """
    count = len(rows)
    winner_N, flip_N = winners(rows, numbers), np.full(count, settings.flip)
    if numbers.score_NS is not None:
        flip_N = np.asarray(preference.pseudo_flip(*_ordered(numbers.score_NS, winner_N)), np.float64)
    unsafe_NS = np.array([[float(flag or False) for flag in row.example.unsafe or (None, None)] for row in rows]).reshape(-1, 2)
    unsafe_w_N, unsafe_l_N = _ordered(unsafe_NS, winner_N)
    scale, offset_N = settings.beta, np.full(count, settings.offset)
    offset_N = offset_N + preference.safedpo_offset(unsafe_w_N, unsafe_l_N, settings.unsafe_offset)
    if numbers.margin_NS is not None:
        weight = settings.margin.weight
        margins = _ordered(settings.beta * numbers.margin_NS, winner_N)
        offset_N = offset_N + preference.margin_offset(*margins, weight=weight, main=1 - weight)
        scale = settings.beta / (1 - weight)
    target = settings.target
    weights = dict(winner=target.safe_winner, loser=target.safe_loser, constant=target.constant)
    target_N = preference.safety_target(1 - unsafe_w_N, 1 - unsafe_l_N, tau=settings.beta, **weights)
    reference_NS = np.zeros((count, 2)) if numbers.reference_NS is None else numbers.reference_NS
    return tuple(
        Terms(
            tuple(reference_NS[row, :2].tolist()),
            scale,
            float(offset_N[row]),
            float(flip_N[row]),
            float(target_N[row]),
            settings.sft_coef,
            int(winner_N[row]),
            *((float(reference_NS[row, 2]), undesirable) if reference_NS.shape[1] > 2 else ()),
        )
        for row in range(count)
    )


def _ordered(x_NS: Float[np.ndarray, "N 2"], winner_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x of the winner, x of the other)."""
    rows = np.arange(len(x_NS))
    return x_NS[rows, winner_N], x_NS[rows, 1 - winner_N]
