"""Directions from activations at the ends of safe and unsafe answers to the same prompts: what a revision adds (models/revision.py).

A unit is a head of a layer, or a layer's residual stream as one head. All in float64 on the host.
"""

from typing import NamedTuple

import chex
import numpy as np
from jaxtyping import Bool, Float

RIDGE = 0.1  # of a probe's covariance, as a share of its mean variance


class Directions(NamedTuple):
    """Directions of every unit, and what they are worth."""

    shift_LHh: Float[np.ndarray, "L H h"]  # mean(a | safe) - mean(a | unsafe)
    spread_LH: Float[np.ndarray, "L H"]  # standard deviation of a along the shift, over all answers
    accuracy_LH: Float[np.ndarray, "L H"]  # of a linear probe, on held-out pairs


def fit(
    safe_LBHh: Float[np.ndarray, "L B H h"], unsafe_LBHh: Float[np.ndarray, "L B H h"], held_B: Bool[np.ndarray, "B"]
) -> Directions:
    """Mean differences over all pairs, and the accuracy of a probe that was fitted on the pairs that are not held out.

    The probe is Fisher's: normal n = (S + r I)^-1 (m_safe - m_unsafe), with S the mean covariance of both kinds of answers and r a share
    of its mean variance; an answer is called safe beyond the middle of the two means (Internal Activation Revision, AAAI 2025,
    chooses heads by a linear probe; the kind is ours).

    Args:
        held_B: pairs that the probe is measured on; some, and not all.
    """
    chex.assert_equal_shape([safe_LBHh, unsafe_LBHh])
    assert held_B.any() and not held_B.all()
    safe, unsafe = (np.moveaxis(np.asarray(side, np.float64), 1, 2) for side in (safe_LBHh, unsafe_LBHh))  # [L, H, B, h]
    shift_LHh = (safe - unsafe).mean(axis=2)
    along = [np.einsum("lhbi,lhi->lhb", side, unit(shift_LHh)) for side in (safe, unsafe)]
    spread_LH = np.concatenate(along, axis=2).std(axis=2)
    return Directions(shift_LHh, spread_LH, _probe_accuracy(safe, unsafe, held_B))


def unit(shift_LHh: Float[np.ndarray, "L H h"]) -> Float[np.ndarray, "L H h"]:
    """Directions of length 1; 0 where there is none."""
    length = np.linalg.norm(shift_LHh, axis=2, keepdims=True)
    return np.divide(shift_LHh, length, out=np.zeros_like(shift_LHh), where=length > 0)


def _probe_accuracy(safe: np.ndarray, unsafe: np.ndarray, held_B: np.ndarray) -> Float[np.ndarray, "L H"]:
    means = [side[:, :, ~held_B].mean(axis=2) for side in (safe, unsafe)]
    centred = [side[:, :, ~held_B] - mean[:, :, None] for side, mean in zip((safe, unsafe), means)]
    covariance = sum(np.einsum("lhbi,lhbj->lhij", one, one) for one in centred) / (2 * centred[0].shape[2])
    width = covariance.shape[-1]
    ridge = RIDGE * np.trace(covariance, axis1=2, axis2=3) / width
    covariance += (ridge + (ridge == 0))[:, :, None, None] * np.eye(width)
    normal = np.linalg.solve(covariance, (means[0] - means[1])[..., None])[..., 0]
    middle = np.einsum("lhi,lhi->lh", normal, (means[0] + means[1]) / 2)[:, :, None]
    beyond = [np.einsum("lhbi,lhi->lhb", side[:, :, held_B], normal) - middle for side in (safe, unsafe)]
    return ((beyond[0] > 0).mean(axis=2) + (beyond[1] < 0).mean(axis=2)) / 2


def best(accuracy_LH: Float[np.ndarray, "L H"], top: int) -> tuple[tuple[int, int], ...]:
    """(layer, head) of the `top` most accurate units, the best first; of equal ones the earlier."""
    order = np.argsort(-accuracy_LH.reshape(-1), kind="stable")[:top]
    return tuple((int(layer), int(head)) for layer, head in zip(*np.unravel_index(order, accuracy_LH.shape)))


def chosen(shift_LHh: Float[np.ndarray, "L H h"], units: tuple[tuple[int, int], ...]) -> Float[np.ndarray, "L H h"]:
    """The shifts of these units, and 0 of all others."""
    kept = np.zeros(shift_LHh.shape[:2], bool)
    kept[tuple(np.transpose(units))] = True
    return np.where(kept[:, :, None], shift_LHh, 0)
